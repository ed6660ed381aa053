// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The format is the one of https://prometheus.io/docs/instrumenting/exposition_formats/.
func TestTextIsTheFormatOfPrometheus(t *testing.T) {
	var text Text
	text.Gauge("up", `whether C:\ is there,
or not`, 1)
	text.Counter("ends_total", "ends", 3, "outcome", "COMPLETED")
	text.Counter("ends_total", "ends", 0, "outcome", "say \"no\"\\\n\xff", "phase", "")
	text.Summary("seconds", "time", 1.5, 2, "outcome", "COMPLETED")
	text.Gauge("big", "large", 1e21)
	text.Gauge("endless", "none", math.Inf(1))
	want := `# HELP up whether C:\\ is there,\nor not
# TYPE up gauge
up 1
# HELP ends_total ends
# TYPE ends_total counter
ends_total{outcome="COMPLETED"} 3
ends_total{outcome="say \"no\"\\\n?",phase=""} 0
# HELP seconds time
# TYPE seconds summary
seconds_sum{outcome="COMPLETED"} 1.5
seconds_count{outcome="COMPLETED"} 2
# HELP big large
# TYPE big gauge
big 1e+21
# HELP endless none
# TYPE endless gauge
endless +Inf
`
	if diff := cmp.Diff(want, string(text.Bytes())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
