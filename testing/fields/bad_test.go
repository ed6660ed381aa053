// SPDX-License-Identifier: Apache-2.0

package fields

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/notaryproject/notation-core-go/signature/jws"
	"github.com/notaryproject/notation-core-go/testhelper"
	"github.com/notaryproject/notation-go"
	signatures "github.com/notaryproject/notation-go/registry"
	"github.com/notaryproject/notation-go/signer"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"oras.land/oras-go/v2/registry/remote"

	"sdvbox/platform/containerd"
	"sdvbox/platform/ctrmodel"
	"sdvbox/testing/ctragent"
	"sdvbox/testing/ctrd"
)

// failure is what an error has to be.
type failure struct {
	kind  ctrmodel.Kind
	words []string // that it says
}

func fails(kind ctrmodel.Kind, words ...string) failure { return failure{kind, words} }

func (f failure) check(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil || ctrmodel.KindOf(err) != f.kind {
		t.Fatalf("%s: %v is of kind %d, want %d", what, err, ctrmodel.KindOf(err), f.kind)
	}
	for _, w := range f.words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %v does not say %q", what, err, w)
		}
	}
}

// command checks that kanto-cm says the same.
func (f failure) command(t *testing.T, l *lab, args ...string) {
	t.Helper()
	out, errs, code := l.Run("kanto-cm", args...)
	want := map[ctrmodel.Kind]int{ctrmodel.InvalidArgument: 2, ctrmodel.NotFound: 3}[f.kind]
	if args[0] == "create" && want == 3 || args[0] == "start" && want == 2 { // that is for containers, not for images, and for what is asked now
		want = 1
	}
	if code == 0 || code != max(want, 1) || out != "" || strings.Count(errs, "\n") != 1 {
		t.Errorf("kanto-cm %q: %d, %q, %q", args, code, out, errs)
	}
	for _, w := range f.words {
		if !strings.Contains(errs, w) {
			t.Errorf("kanto-cm %q: %q does not say %q", args, errs, w)
		}
	}
}

// create tries to create a container, both ways.
func (f failure) create(t *testing.T, l *lab, c *ctrmodel.Container) {
	t.Helper()
	_, err := l.Create(t.Context(), c)
	f.check(t, "create", err)
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "container.json")
	write(t, file, string(text))
	f.command(t, l, "create", "--file", file)
}

// start tries to start a container, both ways.
func (f failure) start(t *testing.T, l *lab, name string, change func(*ctrmodel.Container)) {
	t.Helper()
	b := l.make(t, name, change)
	f.check(t, "start", l.Start(t.Context(), b.id))
	f.command(t, l, "start", "-n", name)
	c := b.get()
	if c.State.PID > 0 || c.State.Running {
		t.Errorf("state %+v", c.State)
	}
	for _, w := range f.words {
		if !strings.Contains(c.State.Error, w) {
			t.Errorf("the state says %q, not %q", c.State.Error, w)
		}
	}
	if err := l.Remove(t.Context(), b.id, false, ctrmodel.StopOptions{}); err != nil {
		t.Errorf("remove: %v", err)
	}
}

// from is a container of an image.
func from(ref string) *ctrmodel.Container {
	return &ctrmodel.Container{Image: ctrmodel.Image{Name: ref}}
}

const emptyImage = "example.org/empty:1" // does not say what to run

func TestWhatIsWrongIsSaidAndLeavesNothing(t *testing.T) {
	disk := t.TempDir()
	if err := unix.Mount("disk", disk, "tmpfs", 0, "size=100m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(disk, unix.MNT_DETACH) })
	l := newLab(t, disk, map[string]ctragent.Section{"network": {"default_bridge": ctragent.Section{"name": "bad0"}}})
	b := l.run(t, "there", func(c *ctrmodel.Container) {
		c.ID = "there-id"
		c.HostConfig.Ports = []ctrmodel.Port{{Container: 80, HostPort: 20100}}
	})
	b.view()
	l.Import(ctragent.NewImage(emptyImage, v1.ImageConfig{}, map[string][]byte{"a": nil}))
	before := l.place.Take(t)
	t.Run("wrong", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T, *lab){
			"Registry": badRegistry, "Fields": badFields, "Host": badHost, "States": badStates,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, l)
			})
		}
	})
	l.place.Await(t, before, 5*time.Second)
	t.Run("Disk", func(t *testing.T) { fullDisk(t, l) })
	l.place.Await(t, before, 5*time.Second)
}

// badRegistry has one image for each way to lie.
func badRegistry(t *testing.T, l *lab) {
	img := func(name string) *ctragent.Image {
		return ctragent.NewImage("x/"+name+":1", v1.ImageConfig{Cmd: []string{"/a"}}, map[string][]byte{"a": []byte(name)})
	}
	good, forged, cut := img("good"), img("forged"), img("cut")
	forged.Blobs[forged.Layer.Digest] = bytes.Replace(forged.Blobs[forged.Layer.Digest], []byte("forged"), []byte("evil!!"), 1)
	notTar := ctragent.LayerImage("x/not-tar:1", v1.ImageConfig{}, v1.MediaTypeImageLayerGzip, []byte("no gzip"), []byte("no tar"))
	other := ctragent.LayerImage("x/other:1", v1.ImageConfig{}, v1.MediaTypeImageLayer, good.Blobs[good.Layer.Digest], []byte("another one"))
	encrypted := ctragent.LayerImage("x/encrypted:1", v1.ImageConfig{}, v1.MediaTypeImageLayer+"+encrypted", []byte("?"), []byte("?"))
	r := ctragent.Serve(t, func(w http.ResponseWriter, q *http.Request) bool {
		switch {
		case strings.HasPrefix(q.URL.Path, "/v2/secret/"):
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
		case strings.HasPrefix(q.URL.Path, "/v2/forbidden/"):
			w.WriteHeader(http.StatusForbidden)
		case strings.HasPrefix(q.URL.Path, "/v2/silent/"):
			<-q.Context().Done()
		case strings.HasPrefix(q.URL.Path, "/v2/page/"):
			w.Header().Set("Content-Type", "text/html")
			w.Write([]byte("<html>Log in to this network</html>"))
		case q.URL.Path == "/v2/cut/blobs/"+cut.Layer.Digest.String():
			w.Header().Set("Content-Length", strconv.FormatInt(cut.Layer.Size, 10))
			w.Write(cut.Blobs[cut.Layer.Digest][:1000])
			w.(http.Flusher).Flush()
			<-q.Context().Done()
		default:
			return false
		}
		return true
	}, good, forged, cut, notTar, other, encrypted)
	wrong := r.Host + "/good:1@" + forged.Manifest.Digest.String()
	for ref, want := range map[string]failure{
		r.Host + "/nothing:1":   fails(ctrmodel.NotFound, "nothing:1"),
		r.Host + "/secret:1":    fails(ctrmodel.Unauthenticated, "secret:1"),
		r.Host + "/forbidden:1": fails(ctrmodel.PermissionDenied, "forbidden:1", "403"),
		r.Host + "/page:1":      fails(ctrmodel.FailedPrecondition, "page:1", "text/html"),
		r.Name(forged):          fails(ctrmodel.FailedPrecondition, "forged:1", forged.Layer.Digest.String()),
		wrong:                   fails(ctrmodel.NotFound, forged.Manifest.Digest.String()),
		r.Name(notTar):          fails(ctrmodel.FailedPrecondition, "not-tar:1", notTar.Layer.Digest.String()),
		r.Name(other):           fails(ctrmodel.FailedPrecondition, "other:1", other.Layer.Digest.String()),
		r.Name(encrypted):       fails(ctrmodel.FailedPrecondition, "encrypted:1", "is encrypted"),
		"no such name":          fails(ctrmodel.InvalidArgument, "no such name"),
	} {
		t.Run(strings.NewReplacer("/", " ", ":", " ").Replace(ref), func(t *testing.T) {
			t.Parallel()
			want.create(t, l, from(ref))
		})
	}
	t.Run("nobody", func(t *testing.T) { // who asks long enough
		t.Parallel()
		fails(ctrmodel.Unavailable, "127.0.0.1:1/app:1", "refused").command(t, l, "create", "127.0.0.1:1/app:1")
	})
	for _, name := range []string{"/silent:1", "/cut:1"} {
		t.Run(name[1:], func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), ctrd.Patient(3*time.Second))
			defer cancel()
			begin := time.Now()
			_, err := l.Create(ctx, from(r.Host+name))
			fails(ctrmodel.DeadlineExceeded).check(t, "create", err)
			if took := time.Since(begin); took > ctrd.Patient(10*time.Second) {
				t.Errorf("took %v", took)
			}
			if name != "/cut:1" {
				return
			}
			// What has come of an image is kept for a while, so that the next pull goes on there.
			kept := slices.DeleteFunc(must(l.containerd.Leases.List(t.Context()))(t), func(lease *containerd.Lease) bool {
				return lease.Labels["sdvbox.image"] != r.Host+name
			})
			if len(kept) != 1 {
				t.Fatalf("kept in the leases %+v, expected one", kept)
			}
			if err := l.containerd.Leases.Delete(t.Context(), kept[0].ID, true); err != nil {
				t.Error(err)
			}
		})
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// fullDisk pulls a layer that becomes much larger than it was.
func fullDisk(t *testing.T, l *lab) {
	var plain, packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	w := tar.NewWriter(&plain)
	const size = 200 << 20
	w.WriteHeader(&tar.Header{Name: "zeros", Mode: 0o644, Size: size})
	w.Write(make([]byte, size))
	w.Close()
	z.Write(plain.Bytes())
	z.Close()
	bomb := ctragent.LayerImage("x/bomb:1", v1.ImageConfig{}, v1.MediaTypeImageLayerGzip, packed.Bytes(), plain.Bytes())
	large := ctragent.LayerImage("x/large:1", v1.ImageConfig{}, v1.MediaTypeImageLayer, plain.Bytes(), plain.Bytes())
	r := ctragent.Serve(t, nil, bomb, large)
	fails(ctrmodel.ResourceExhausted, "large:1", "not enough space").create(t, l, from(r.Name(large)))
	fails(ctrmodel.ResourceExhausted, "bomb:1", "space").create(t, l, from(r.Name(bomb)))
}

func badFields(t *testing.T, l *lab) {
	for word, change := range map[string]func(c *ctrmodel.Container){
		"container_name": func(c *ctrmodel.Container) { c.Name = "a b" },
		"container_id":   func(c *ctrmodel.Container) { c.ID = "../../etc" },
		"image":          func(c *ctrmodel.Container) { c.Image.Name = "" },
		"env":            func(c *ctrmodel.Container) { c.Config.Env = []string{"=x"} },
		"propagation": func(c *ctrmodel.Container) {
			c.Mounts = []ctrmodel.Mount{{Source: "/", Destination: "/x", Propagation: "around"}}
		},
		"destination":    func(c *ctrmodel.Container) { c.Mounts = []ctrmodel.Mount{{Source: "/"}} },
		"hooks":          func(c *ctrmodel.Container) { c.Hooks = []ctrmodel.Hook{{}} },
		"network_mode":   func(c *ctrmodel.Container) { c.HostConfig.NetworkMode = "mesh" },
		"runtime":        func(c *ctrmodel.Container) { c.HostConfig.Runtime = "io.example.none.v1" },
		"restart_policy": func(c *ctrmodel.Container) { c.HostConfig.RestartPolicy.Type = "sometimes" },
		"permissions": func(c *ctrmodel.Container) {
			c.HostConfig.Devices = []ctrmodel.Device{{OnHost: "/dev/null", Permissions: "x"}}
		},
		"extra_capabilities": func(c *ctrmodel.Container) { c.HostConfig.ExtraCapabilities = []string{"CAP_FLY"} },
		"extra_hosts":        func(c *ctrmodel.Container) { c.HostConfig.ExtraHosts = []string{"alone"} },
		"port_mappings": func(c *ctrmodel.Container) {
			c.HostConfig.Ports = []ctrmodel.Port{{Container: 80, HostPort: 9, HostPortEnd: 8}}
		},
		"log_config": func(c *ctrmodel.Container) { c.HostConfig.Log.Driver.Type = "tape" },
		"max_size": func(c *ctrmodel.Container) {
			c.HostConfig.Log.Driver = ctrmodel.LogDriver{Type: "json-file", MaxFiles: 1, MaxSize: "5"}
		},
		"memory":      func(c *ctrmodel.Container) { c.HostConfig.Resources.Memory = "1M" },
		"memory_swap": func(c *ctrmodel.Container) { c.HostConfig.Resources = ctrmodel.Resources{MemorySwap: "5M"} },
		"memory_reservation": func(c *ctrmodel.Container) {
			c.HostConfig.Resources = ctrmodel.Resources{Memory: "5M", MemoryReservation: "6M"}
		},
		"privileged": func(c *ctrmodel.Container) {
			c.HostConfig.Privileged, c.HostConfig.ExtraCapabilities = true, []string{"CAP_NET_ADMIN"}
		},
	} {
		t.Run(word, func(t *testing.T) {
			c := from(image)
			change(c)
			fails(ctrmodel.InvalidArgument, word).create(t, l, c)
		})
	}
	taken := from(image)
	taken.Name = "there"
	fails(ctrmodel.AlreadyExists, "there").create(t, l, taken)
	taken.Name, taken.ID = "other", "there-id"
	fails(ctrmodel.AlreadyExists, "there-id").create(t, l, taken)
}

// badHost wants what the host does not have.
func badHost(t *testing.T, l *lab) {
	listener := must(net.Listen("tcp", "127.0.0.1:20101"))(t)
	defer listener.Close()
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "")
	port := func(first, last uint16) func(*ctrmodel.Container) {
		return func(c *ctrmodel.Container) {
			c.HostConfig.Ports = []ctrmodel.Port{{Container: 80, HostPort: first, HostPortEnd: last}}
		}
	}
	const state = ctrmodel.FailedPrecondition
	for name, test := range map[string]struct {
		want   failure
		change func(*ctrmodel.Container)
	}{
		"port-of-a-program":   {fails(state, "20101", "in use"), port(20101, 0)},
		"port-of-a-neighbour": {fails(state, "20100", "container there"), port(20100, 0)},
		"all-ports-of-range":  {fails(state, "20100-20101"), port(20100, 20101)},
		"foreign-address": {fails(state, "192.0.2.7"), func(c *ctrmodel.Container) {
			c.HostConfig.Ports = []ctrmodel.Port{{Container: 80, HostPort: 20102, HostIP: "192.0.2.7"}}
		}},
		"no-device":   {fails(state, "/dev/not-there"), func(c *ctrmodel.Container) { c.HostConfig.Devices = []ctrmodel.Device{{OnHost: "/dev/not-there"}} }},
		"file-device": {fails(state, file), func(c *ctrmodel.Container) { c.HostConfig.Devices = []ctrmodel.Device{{OnHost: file}} }},
		"no-source": {fails(state, "/not/there"), func(c *ctrmodel.Container) {
			c.Mounts = []ctrmodel.Mount{{Source: "/not/there", Destination: "/x"}}
		}},
		"no-runtime": {fails(state, "kata"), func(c *ctrmodel.Container) { c.HostConfig.Runtime = "io.containerd.kata.v2" }},
		"no-hook":    {fails(state, "/not/there"), func(c *ctrmodel.Container) { c.Hooks = []ctrmodel.Hook{{Path: "/not/there"}} }},
	} {
		t.Run(name, func(t *testing.T) {
			test.want.start(t, l, name, test.change)
		})
	}
	fails(ctrmodel.InvalidArgument, emptyImage, "cmd").start(t, l, "nothing-to-run", func(c *ctrmodel.Container) {
		c.Image.Name, c.Config.Cmd = emptyImage, nil
	})
	fails(state, "/not/there").start(t, l, "no-program", func(c *ctrmodel.Container) {
		c.Image.Name, c.Config.Cmd = emptyImage, []string{"/not/there"}
	})
}

// badStates asks for what cannot be at the moment.
func badStates(t *testing.T, l *lab) {
	b := l.make(t, "idle", nil)
	ctx := t.Context()
	const state = ctrmodel.FailedPrecondition
	for what, err := range map[string]error{
		"stop": l.Stop(ctx, b.id, ctrmodel.StopOptions{}), "pause": l.Pause(ctx, b.id), "unpause": l.Unpause(ctx, b.id),
	} {
		fails(state, "idle").check(t, what, err)
	}
	fails(state, "no log").check(t, "logs", l.Logs(ctx, b.id, ctrmodel.LogOptions{Tail: -1}, func([]byte) error { return nil }))
	fails(state, "idle").command(t, l, "stop", "-n", "idle")
	fails(state, "there").command(t, l, "start", "-n", "there")
	fails(state, "there").command(t, l, "remove", "-n", "there")
	fails(ctrmodel.AlreadyExists, "there").command(t, l, "rename", "-n", "idle", "there")
	fails(ctrmodel.InvalidArgument, "a b").command(t, l, "rename", "-n", "idle", "a b")
	fails(ctrmodel.InvalidArgument, "memory").command(t, l, "update", "-n", "idle", "--memory", "1M")
	for _, command := range []string{"start", "stop", "get", "logs", "remove", "pause"} {
		fails(ctrmodel.NotFound, "nobody").command(t, l, command, "nobody")
		fails(ctrmodel.NotFound, "nobody").command(t, l, command, "-n", "nobody")
	}
	if err := l.Remove(ctx, b.id, false, ctrmodel.StopOptions{}); err != nil {
		t.Error(err)
	}
}

func TestOnlySignedImagesRun(t *testing.T) {
	r := ctragent.StartRegistry(t)
	trust := t.TempDir()
	l := newLab(t, "", map[string]ctragent.Section{
		"network":    {"default_bridge": ctragent.Section{"name": "signed0"}},
		"containers": {"image_verifier_type": "notation", "image_verifier_config": map[string]string{"configDir": trust}},
	})
	before := l.place.Take(t)
	ref := r.Push(t, ctragent.NewImage("x/app:1", v1.ImageConfig{Cmd: []string{"/probe"}}, map[string][]byte{"probe": ctragent.Program(t, probe)}))
	const refused = ctrmodel.PermissionDenied
	fails(ctrmodel.FailedPrecondition, ref, "trustpolicy.json").create(t, l, from(ref))
	good, evil := testhelper.GetRSASelfSignedSigningCertTuple("good"), testhelper.GetRSASelfSignedSigningCertTuple("evil")
	store := trust + "/truststore/x509/ca/vehicle"
	if err := os.MkdirAll(store, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, store+"/ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: good.Cert.Raw})))
	write(t, trust+"/trustpolicy.json", `{"version": "1.0", "trustPolicies": [{"name": "all", "registryScopes": ["*"],
		"signatureVerification": {"level": "strict"}, "trustStores": ["ca:vehicle"], "trustedIdentities": ["*"]}]}`)
	fails(refused, ref, "no signature").create(t, l, from(ref))
	sign := func(with testhelper.RSACertTuple) {
		repo := must(remote.NewRepository(ref))(t)
		repo.PlainHTTP = true
		s := must(signer.NewGenericSigner(with.PrivateKey, []*x509.Certificate{with.Cert}))(t)
		must(notation.Sign(t.Context(), s, signatures.NewRepository(repo), notation.SignOptions{
			SignerSignOptions: notation.SignerSignOptions{SignatureMediaType: jws.MediaTypeEnvelope}, ArtifactReference: ref,
		}))(t)
	}
	sign(evil)
	fails(refused, ref, "trusted").create(t, l, from(ref))
	l.place.Await(t, before, 5*time.Second)
	sign(good)
	made, err := l.Create(t.Context(), from(ref))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Start(t.Context(), made.ID); err != nil {
		t.Error(err)
	}
}
