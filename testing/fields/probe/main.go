// SPDX-License-Identifier: Apache-2.0

// probe runs in the containers of the test and says what it finds there. Without arguments it looks around and waits.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sdvbox/testing/fields/inside"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func run(args []string) error {
	command := "wait"
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	switch command {
	case "wait":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		if err := json.NewEncoder(os.Stdout).Encode(inside.Look()); err != nil {
			return err
		}
		<-stop
	case "exit":
		code, err := strconv.Atoi(arg(0))
		if err != nil {
			return err
		}
		os.Exit(code)
	case "open": // r, w or rw
		flags := map[string]int{"r": unix.O_RDONLY, "w": unix.O_WRONLY, "rw": unix.O_RDWR}[arg(0)]
		fmt.Print(inside.Open(arg(1), flags))
	case "write":
		return os.WriteFile(arg(0), []byte(arg(1)), 0o644)
	case "read":
		data, err := os.ReadFile(arg(0))
		fmt.Print(string(data))
		return err
	case "mknod":
		major, err := strconv.Atoi(arg(1))
		minor, err2 := strconv.Atoi(arg(2))
		return errors.Join(err, err2, unix.Mknod(arg(0), unix.S_IFCHR|0o600, int(unix.Mkdev(uint32(major), uint32(minor)))))
	case "mount":
		return unix.Mount("none", arg(0), "tmpfs", 0, "")
	case "echo": // until the end of the input
		in := bufio.NewScanner(os.Stdin)
		for in.Scan() {
			fmt.Printf("<%s>\n", in.Text())
		}
		fmt.Println("end")
		return in.Err()
	case "both":
		fmt.Println("out")
		fmt.Fprintln(os.Stderr, "err")
	case "lines":
		n, err := strconv.Atoi(arg(0))
		out := bufio.NewWriter(os.Stdout)
		for i := range n {
			fmt.Fprintf(out, "line %d %s\n", i, arg(1))
		}
		return errors.Join(err, out.Flush())
	case "clock": // every PERIOD
		period, err := time.ParseDuration(arg(0))
		if err != nil {
			return err
		}
		for range time.Tick(period) {
			fmt.Println(time.Now().UnixNano())
		}
	case "eat": // memory
		var all [][]byte
		for {
			page := make([]byte, 1<<20)
			for i := 0; i < len(page); i += 4096 {
				page[i] = 1
			}
			all = append(all, page)
		}
	case "serve":
		return serve(args)
	case "dial": // NETWORK ADDRESS
		conn, err := net.DialTimeout(arg(0), arg(1), 2*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(2 * time.Second))
		fmt.Fprintln(conn, "hello")
		answer := make([]byte, 100)
		n, err := conn.Read(answer)
		fmt.Print(string(answer[:n]))
		return err
	case "lookup": // in the hosts file only
		r := net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no name server") }}
		list, err := r.LookupHost(context.Background(), arg(0))
		fmt.Print(strings.Join(list, " "))
		return err
	default:
		return fmt.Errorf("there is no %s", command)
	}
	return nil
}

// serve says the name of the host to whoever asks at the port, by TCP and UDP.
func serve(args []string) error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	packets, err := net.ListenPacket("udp", ":"+args[0])
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 100)
		for {
			if _, from, err := packets.ReadFrom(buf); err == nil {
				packets.WriteTo([]byte(name), from)
			}
		}
	}()
	l, err := net.Listen("tcp", ":"+args[0])
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		io.WriteString(conn, name)
		conn.Close()
	}
}
