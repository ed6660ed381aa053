// SPDX-License-Identifier: Apache-2.0

package ctrlog

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain is the agent that TestKilledAgentLosesNothing kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv("CTRLOG_AGENT"); dir != "" {
		if _, err := agentConsole(dir).Open(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("open")
		select {}
	}
	os.Exit(m.Run())
}

func agentConsole(dir string) *Console {
	return New(Config{Dir: filepath.Join(dir, "fifo"), File: filepath.Join(dir, "log/json.log"), MaxSize: 300_000, MaxFiles: 1000})
}

func TestKilledAgentLosesNothing(t *testing.T) {
	t.Run("different lines", func(t *testing.T) {
		killAgents(t, func(n int) string { return fmt.Sprintf("%d %s\n", n, strings.Repeat("-", n%100)) })
	})
	// What has been taken from the FIFO looks like what is in it.
	t.Run("the same line", func(t *testing.T) { killAgents(t, func(int) string { return "tick\n" }) })
}

func killAgents(t *testing.T, line func(n int) string) {
	dir := t.TempDir()
	start := func() *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "CTRLOG_AGENT="+dir)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "open\n" {
			t.Fatal(line, err)
		}
		return cmd
	}
	agent := start()
	c := agentConsole(dir)
	open := func(path string, flag int) *os.File {
		f, err := os.OpenFile(path, flag, 0)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	out, keepOut := open(c.paths.Stdout, os.O_WRONLY), open(c.paths.Stdout, os.O_RDONLY)
	errs, keepErrs := open(c.paths.Stderr, os.O_WRONLY), open(c.paths.Stderr, os.O_RDONLY)
	kills := 30
	if os.Getenv("SDVBOX_LONG") == "1" {
		kills = 1000
	}
	stop := make(chan struct{})
	counts := make(chan int, 2)
	for _, f := range []*os.File{out, errs} {
		go func() {
			n := 0
			for ; ; n++ {
				select {
				case <-stop:
					counts <- n
					return
				default:
				}
				text := line(n)
				cut := rand.IntN(len(text))
				if _, err := io.WriteString(f, text[:cut]); err != nil {
					t.Error(err)
				}
				io.WriteString(f, text[cut:])
			}
		}()
	}
	for range kills {
		time.Sleep(time.Duration(rand.IntN(8_000_000)))
		agent.Process.Kill()
		agent.Wait()
		agent = start()
	}
	close(stop)
	total := <-counts + <-counts
	agent.Process.Kill()
	agent.Wait()
	if _, err := c.Open(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{out, keepOut, errs, keepErrs} {
		f.Close()
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	next := map[string]int{}
	for i, l := range logs(t, c, -1) {
		n := next[l.Stream]
		if want := line(n); l.Log != want {
			t.Fatalf("line %d of the log: got %q of %s, want %q", i, l.Log, l.Stream, want)
		}
		next[l.Stream]++
	}
	if got := next["stdout"] + next["stderr"]; got != total {
		t.Errorf("%d lines of %d are in the log", got, total)
	}
	t.Logf("%d lines, %d kills", total, kills)
}
