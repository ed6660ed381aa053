// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/notaryproject/notation-core-go/signature/jws"
	"github.com/notaryproject/notation-core-go/testhelper"
	"github.com/notaryproject/notation-go"
	signatures "github.com/notaryproject/notation-go/registry"
	"github.com/notaryproject/notation-go/signer"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote"

	"sdvbox/platform/ctrmodel"
)

// sign signs an image in the registry, as the notation tool does.
func (r *server) sign(t testing.TB, ref string, with testhelper.RSACertTuple) {
	t.Helper()
	repo := must(remote.NewRepository(ref))(t)
	repo.PlainHTTP = true
	s := must(signer.NewGenericSigner(with.PrivateKey, []*x509.Certificate{with.Cert}))(t)
	must(notation.Sign(t.Context(), s, signatures.NewRepository(repo), notation.SignOptions{
		SignerSignOptions: notation.SignerSignOptions{SignatureMediaType: jws.MediaTypeEnvelope},
		ArtifactReference: ref,
	}))(t)
}

// trust writes a policy that trusts a certificate.
func trust(t testing.TB, dir string, cert *x509.Certificate) {
	t.Helper()
	store := dir + "/truststore/x509/ca/vehicle"
	ok(t, os.MkdirAll(store, 0o755))
	ok(t, os.WriteFile(store+"/ca.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), 0o644))
	policy := map[string]any{"version": "1.0", "trustPolicies": []any{map[string]any{
		"name": "all", "registryScopes": []string{"*"}, "signatureVerification": map[string]any{"level": "strict"},
		"trustStores": []string{"ca:vehicle"}, "trustedIdentities": []string{"*"},
	}}}
	ok(t, os.WriteFile(dir+"/trustpolicy.json", must(json.Marshal(policy))(t), 0o600))
}

func TestOnlyImagesWithASignatureArePulled(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	dir := t.TempDir()
	s, _ := start(t, func(c *Config) { c.Patience = 3 * time.Second })
	s.Verify = Notation(dir, dir)
	good, evil := testhelper.GetRSASelfSignedSigningCertTuple("good"), testhelper.GetRSASelfSignedSigningCertTuple("evil")
	ref := r.push(t, newImage(1), "app:1")
	ctx := t.Context()

	_, err := s.Pull(ctx, ref, nil)
	expect(t, err, ctrmodel.FailedPrecondition, "trustpolicy.json")
	trust(t, dir, good.Cert)
	_, err = s.Pull(ctx, ref, nil)
	expect(t, err, ctrmodel.PermissionDenied, "no signature")
	r.sign(t, ref, evil)
	_, err = s.Pull(ctx, ref, nil)
	expect(t, err, ctrmodel.PermissionDenied, "trusted")
	nothing(t, s)

	// The tag moves while the signature is verified: what has been verified is pulled.
	signed := newImage(1).root.Digest
	r.sign(t, ref, good)
	unsigned := newImage(2)
	moving := r.between(t, func(_ http.ResponseWriter, req *http.Request) bool { return true })
	verify := s.Verify
	s.Verify = func(ctx context.Context, repo *remote.Repository, d v1.Descriptor) error {
		r.push(t, unsigned, "app:1")
		return verify(ctx, repo, d)
	}
	img := must(s.Pull(ctx, moving.at(ref), nil))(t)
	if img.Digest != signed.String() {
		t.Errorf("pulled %s, signed is %s", img.Digest, signed)
	}
	s.Verify = verify
	_, err = s.Refresh(ctx, moving.at(ref), nil)
	expect(t, err, ctrmodel.PermissionDenied, "no signature")

	// An image that is here is taken if a signature has been seen, and if not, its signature is looked for.
	s.Verify = func(context.Context, *remote.Repository, v1.Descriptor) error {
		t.Error("verified again")
		return nil
	}
	must(s.Pull(ctx, moving.at(ref), nil))(t)
	s.Verify = nil
	must(s.Pull(ctx, ref, nil))(t)
	s.Verify = verify
	_, err = s.Pull(ctx, ref, nil)
	expect(t, err, ctrmodel.PermissionDenied, "no signature")
	_, err = s.ByDigest(ctx, ref, unsigned.root.Digest.String())
	expect(t, err, ctrmodel.PermissionDenied, "no signature")
	r.sign(t, ref, good)
	must(s.ByDigest(ctx, ref, unsigned.root.Digest.String()))(t)

	// That the registry fails is not the same as that there is no signature.
	failing := r.between(t, func(w http.ResponseWriter, req *http.Request) bool {
		if strings.Contains(req.URL.Path, "/referrers/") || strings.Contains(req.URL.Path, "/manifests/sha256-") {
			w.WriteHeader(503)
			return false
		}
		return true
	})
	_, err = s.Pull(ctx, failing.at(ref)+"@"+signed.String(), nil)
	expect(t, err, ctrmodel.Unavailable, "503")

	// Without a network, what has been verified is taken, and nothing else.
	r.stop()
	must(s.Pull(ctx, moving.at(ref), nil))(t)
	must(s.ByDigest(ctx, moving.at(ref), signed.String()))(t)
	must(s.ByDigest(ctx, ref, unsigned.root.Digest.String()))(t)
	_, err = s.Pull(ctx, ref, nil)
	expect(t, err, ctrmodel.Unavailable, ref)
}

func TestWhereTheTrustPolicyIs(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", t.TempDir()) // has no effect: it depends on who starts the agent
	for config, want := range map[string]string{"": "/etc/notation/trustpolicy.json", dir: dir + "/trustpolicy.json"} {
		if _, err := os.Stat(want); err == nil {
			t.Skip(want, "is there")
		}
		expect(t, Notation(config, "")(t.Context(), nil, v1.Descriptor{}), ctrmodel.FailedPrecondition, " "+want+":")
	}
}

func TestTrustThatIsWithdrawnCountsForWhatComes(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	dir := t.TempDir()
	s, _ := start(t)
	s.Verify = Notation(dir, dir)
	good, other := testhelper.GetRSASelfSignedSigningCertTuple("good"), testhelper.GetRSASelfSignedSigningCertTuple("other")
	trust(t, dir, good.Cert)
	ref := r.push(t, newImage(1), "app:1")
	r.sign(t, ref, good)
	must(s.Pull(t.Context(), ref, nil))(t)
	trust(t, dir, other.Cert)
	must(s.Pull(t.Context(), ref, nil))(t) // it has been verified
	_, err := s.Refresh(t.Context(), ref, nil)
	expect(t, err, ctrmodel.PermissionDenied, ref, "trusted")
	ok(t, s.Remove(t.Context(), ref))
	_, err = s.Pull(t.Context(), ref, nil)
	expect(t, err, ctrmodel.PermissionDenied, ref, "trusted")
	nothing(t, s)
}
