// SPDX-License-Identifier: Apache-2.0

package images

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/notaryproject/notation-go"
	"github.com/notaryproject/notation-go/dir"
	"github.com/notaryproject/notation-go/plugin"
	signatures "github.com/notaryproject/notation-go/registry"
	"github.com/notaryproject/notation-go/verifier"
	"github.com/notaryproject/notation-go/verifier/trustpolicy"
	"github.com/notaryproject/notation-go/verifier/truststore"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote"

	"sdvbox/platform/ctrmodel"
)

// Verifier says whether an image in a repository is one that may run here.
type Verifier func(ctx context.Context, repo *remote.Repository, image v1.Descriptor) error

// Notation verifies the signatures of Notation. The trust policy and the certificates are below configDir, empty is
// /etc/notation; plug-ins are below libexecDir, empty is configDir. They are read each time, and without them no image is trusted.
func Notation(configDir, libexecDir string) Verifier {
	configDir = cmp.Or(configDir, "/etc/notation") // notation itself goes by HOME, which services do not have
	libexecDir = cmp.Or(libexecDir, configDir)
	config, plugins := dir.NewSysFS(configDir), dir.NewSysFS(filepath.Join(libexecDir, dir.PathPlugins))
	return func(ctx context.Context, repo *remote.Repository, image v1.Descriptor) error {
		path, err := config.SysPath(dir.PathTrustPolicy)
		if err != nil {
			return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "signatures: %w", err)
		}
		policy := &trustpolicy.Document{}
		if data, err := os.ReadFile(path); err != nil {
			return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "signatures: %w", err)
		} else if err := json.Unmarshal(data, policy); err != nil {
			return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "signatures: %s: %w", path, err)
		}
		v, err := verifier.New(policy, truststore.NewX509TrustStore(config), plugin.NewCLIManager(plugins))
		if err != nil {
			return ctrmodel.Errorf(ctrmodel.FailedPrecondition, "signatures: %s: %w", path, err)
		}
		of := &signaturesOf{Repository: signatures.NewRepository(repo), image: image}
		_, _, err = notation.Verify(ctx, v, of, notation.VerifyOptions{
			ArtifactReference:    fmt.Sprintf("%s/%s@%s", repo.Reference.Registry, repo.Reference.Repository, image.Digest),
			MaxSignatureAttempts: 50,
		})
		switch {
		case err == nil:
			return nil
		case of.err != nil:
			return of.err
		case errors.As(err, new(notation.VerificationFailedError)), errors.As(err, new(notation.SignatureRetrievalFailedError)),
			errors.As(err, new(notation.NoApplicableTrustPolicyError)), errors.As(err, new(notation.VerificationInconclusiveError)):
			return ctrmodel.Errorf(ctrmodel.PermissionDenied, "signatures: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
		}
		return err
	}
}

// signaturesOf is the signatures of one image. What goes wrong with the registry is kept, because notation makes text of it.
type signaturesOf struct {
	signatures.Repository
	image v1.Descriptor
	err   error
}

// Resolve does not ask the registry again: what is verified is what is pulled.
func (s *signaturesOf) Resolve(context.Context, string) (v1.Descriptor, error) { return s.image, nil }

func (s *signaturesOf) ListSignatures(ctx context.Context, d v1.Descriptor, each func([]v1.Descriptor) error) error {
	var own error
	err := s.Repository.ListSignatures(ctx, d, func(list []v1.Descriptor) error {
		own = each(list)
		return own
	})
	if own == nil {
		s.err = err
	}
	return err
}

func (s *signaturesOf) FetchSignatureBlob(ctx context.Context, d v1.Descriptor) ([]byte, v1.Descriptor, error) {
	data, blob, err := s.Repository.FetchSignatureBlob(ctx, d)
	if ctx.Err() != nil || unavailable(err) {
		s.err = err
	}
	return data, blob, err
}
