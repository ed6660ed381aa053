// SPDX-License-Identifier: Apache-2.0

package updateproto

import (
	"testing"
	"time"
)

func TestEmptyMembersOfAPayloadAreLeftOut(t *testing.T) {
	action := func(progress int) Action {
		return Action{Component: ComponentRef{"d:c", "1"}, Status: ActionUpdating, Progress: progress}
	}
	for _, test := range []struct {
		id      string
		payload any
		want    string // after the timestamp
	}{
		{"", nil, `null}`},
		{"a", Feedback{Status: StatusIdentifying}, `{"status":"IDENTIFYING"}}`},
		{"a", Feedback{Status: StatusCompleted, Actions: []Action{}}, `{"status":"COMPLETED"}}`},
		{"a", &Feedback{Status: StatusIncomplete, Message: "<100%d>&\n"}, `{"status":"INCOMPLETE","message":"<100%d>&\n"}}`},
		{"a", Feedback{Status: StatusRunning, Actions: []Action{action(0), action(10)}}, `{"status":"RUNNING","actions":[` +
			`{"component":{"id":"d:c","version":"1"},"status":"UPDATING"},{"component":{"id":"d:c","version":"1"},"status":"UPDATING","progress":10}]}}`},
		{"a", Command{Command: CommandUpdate}, `{"command":"UPDATE"}}`},
		{"a", OwnerConsent{Command: CommandDownload}, `{"command":"DOWNLOAD"}}`},
		{"a", DesiredState{}, `{}}`},
		{"a", Action{}, `{"component":{}}}`},
		{"a", DesiredState{Domains: []Domain{{ID: "d", Components: []Component{{ID: "c", Config: []KeyValue{{Key: "0", Value: "[]"}, {Key: "k"}}}}}}},
			`{"domains":[{"id":"d","components":[{"id":"c","config":[{"key":"0","value":"[]"},{"key":"k"}]}]}]}}`},
		{"", Inventory{SoftwareNodes: []SoftwareNode{{ID: "n"}}, HardwareNodes: []HardwareNode{{ID: "h", Addressable: true}}},
			`{"softwareNodes":[{"id":"n"}],"hardwareNodes":[{"id":"h","addressable":true}]}}`},
		{"a", Baseline{Components: []string{"", "0"}}, `{"components":["","0"]}}`},
	} {
		got, err := EncodeCompact(test.id, time.UnixMilli(0), test.payload)
		want := `{"activityId":"` + test.id + `","timestamp":0,"payload":` + test.want
		if err != nil || string(got) != want {
			t.Errorf("error %v, encoded\n%s\nwant\n%s", err, got, want)
		}
	}
}

func TestWhatIsNotJSONIsNotEncoded(t *testing.T) {
	if got, err := EncodeCompact("a", time.Now(), make(chan int)); err == nil {
		t.Errorf("encoded %s", got)
	}
}

func BenchmarkEncodeCompact(b *testing.B) {
	f := Feedback{Status: StatusRunning, Actions: []Action{
		{Component: ComponentRef{"containers:nav", "2.1"}, Status: ActionUpdating, Progress: 10, Message: "unpacking"},
		{Component: ComponentRef{"self-update:os-image", "7"}, Status: ActionDownloading},
	}}
	for b.Loop() {
		if _, err := EncodeCompact("a1", time.UnixMilli(1), f); err != nil {
			b.Fatal(err)
		}
	}
}
