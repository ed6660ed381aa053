// SPDX-License-Identifier: Apache-2.0

package images

import (
	"testing"

	"sdvbox/platform/containerd"
)

func TestLeaseOfAPullThatWasKilledAtTheVeryEnd(t *testing.T) {
	t.Parallel()
	r := startRegistry(t, false)
	s, _ := start(t)
	ctx := t.Context()
	name := r.push(t, newImage(1), "app:1")
	must(s.Pull(ctx, name, nil))(t)
	stored := must(s.Client.Images.Get(ctx, name))(t)

	const done, begun = "r.example/done:1", "r.example/begun:1"
	for _, name := range []string{done, begun} {
		ok(t, s.Client.Leases.Create(ctx, s.job(name, nil).lease, map[string]string{leaseLabel: name}))
	}
	must(s.Client.Images.Create(ctx, &containerd.Image{Name: done, Target: stored.Target}))(t)
	must(s.Collect(ctx, map[string]bool{name: true, done: true}))(t)
	leases := must(s.Client.Leases.List(ctx))(t)
	if len(leases) != 1 || leases[0].Labels[leaseLabel] != begun {
		t.Errorf("leases %+v, expected one of %s", leases, begun)
	}
}
