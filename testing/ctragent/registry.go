// SPDX-License-Identifier: Apache-2.0

package ctragent

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote"

	"sdvbox/testing/ports"
)

// DockerRegistry is a real registry, on loopback.
type DockerRegistry struct{ Host string }

// StartRegistry starts a registry, which ends with the test.
func StartRegistry(tb testing.TB) DockerRegistry {
	tb.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil && os.Getenv("SDVBOX_REQUIRE") != "1" {
		tb.Skip("docker-registry is not installed")
	}
	port, err2 := ports.Free("127.0.0.1", 1)
	if err != nil || err2 != nil {
		tb.Fatal(err, err2)
	}
	r := DockerRegistry{fmt.Sprintf("127.0.0.1:%d", port[0])}
	dir := tb.TempDir()
	config := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %q}, delete: {enabled: true}}\nhttp: {addr: %q}\n", dir, r.Host)
	if err := os.WriteFile(dir+"/config.yml", []byte(config), 0o600); err != nil {
		tb.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(program, "serve", dir+"/config.yml")
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if tb.Failed() {
			tb.Logf("the registry said:\n%s", &log)
		}
	})
	for range 1000 {
		if resp, err := http.Get("http://" + r.Host + "/v2/"); err == nil {
			resp.Body.Close()
			return r
		}
		time.Sleep(10 * time.Millisecond)
	}
	tb.Fatal("the registry does not listen")
	return r
}

// Push puts an image there, and returns its name.
func (r DockerRegistry) Push(tb testing.TB, i *Image) (ref string) {
	tb.Helper()
	_, name, _ := strings.Cut(i.Ref, "/")
	ref = r.Host + "/" + name
	to, err := remote.NewRepository(ref)
	if err != nil {
		tb.Fatal(err)
	}
	to.PlainHTTP = true
	for sum, data := range i.Blobs {
		d := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: sum, Size: int64(len(data))}
		if sum != i.Manifest.Digest {
			if err := to.Push(tb.Context(), d, bytes.NewReader(data)); err != nil {
				tb.Fatal(err)
			}
		}
	}
	if err := to.PushReference(tb.Context(), i.Manifest, bytes.NewReader(i.Blobs[i.Manifest.Digest]), to.Reference.Reference); err != nil {
		tb.Fatal(err)
	}
	return ref
}
