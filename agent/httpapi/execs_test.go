package httpapi

import (
	"bufio"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/podspawn/podspawn/agent/agenttest"
	"github.com/podspawn/podspawn/agent/api"
)

func TestBackgroundCommandOverHTTP(t *testing.T) {
	h := start(t)
	base := "/v1/sandboxes/" + string(h.create().ID) + "/exec"
	var res api.ExecResult
	get := func(r reply) api.ExecResult {
		t.Helper()
		if r.status != 200 {
			t.Fatalf("= %d %s", r.status, r.body)
		}
		res = api.ExecResult{}
		if err := json.Unmarshal(r.body, &res); err != nil {
			t.Fatal(err)
		}
		return res
	}
	get(h.do("POST", base, `{"command":"cat; exit 5","background":true}`))
	one := base + "/" + res.ExecID
	if !res.Running || res.ExitCode != -1 {
		t.Fatalf("exec = %+v", res)
	}
	if r := h.do("POST", one+"/input", `{"data":"hello\n"}`); r.status != 200 || !strings.Contains(string(r.body), `"running":true`) {
		t.Fatalf("input = %d %s", r.status, r.body)
	}
	if r := h.do("POST", one+"/input", `{"eof":true}`); r.status != 200 {
		t.Fatalf("eof = %d %s", r.status, r.body)
	}
	if get(h.do("GET", one+"?wait_seconds=20", "")); res.Running || res.ExitCode != 5 || res.Stdout != "hello\n" || res.Cursor != "6.0" {
		t.Errorf("poll = %+v", res)
	}
	if get(h.do("GET", strings.Replace(one, h.path(base), "-", 1)+"?cursor=6.0", "")); res.Stdout != "" {
		t.Errorf("poll behind the end = %+v", res)
	}
	if r := h.do("GET", one, "", token(agenttest.Bob)); r.status != 404 {
		t.Errorf("another tenant = %d", r.status)
	}
	get(h.do("POST", base, `{"command":"sleep 600","wait_seconds":0.1}`))
	if r := h.do("POST", base+"/"+res.ExecID+"/signal", `{"signal":"INT"}`); r.status != 200 {
		t.Errorf("signal = %d %s", r.status, r.body)
	}
	if get(h.do("GET", base+"/"+res.ExecID+"?wait_seconds=20", "")); res.Signal != "INT" {
		t.Errorf("after the signal: %+v", res)
	}
}

// path returns the id in /v1/sandboxes/ID/exec.
func (h *harness) path(base string) string { return strings.Split(base, "/")[3] }

func TestStreamOverHTTP(t *testing.T) {
	h := start(t)
	id := h.create().ID
	req, err := http.NewRequestWithContext(t.Context(), "POST", h.base+"/v1/sandboxes/"+string(id)+"/exec",
		strings.NewReader(`{"command":"echo one; read x; printf '\\377'; echo $x >&2; exit 7","stdin_open":true}`))
	if err != nil {
		t.Fatal(err)
	}
	token(agenttest.Alice)(req)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", mediaEvents)
	resp, err := h.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != mediaEvents {
		t.Fatalf("stream = %d %v", resp.StatusCode, resp.Header)
	}
	var got []string
	exec := ""
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		got = append(got, data)
		switch len(got) {
		case 1:
			var v struct {
				ExecID string `json:"exec_id"`
			}
			if err := json.Unmarshal([]byte(data), &v); err != nil {
				t.Fatal(err)
			}
			exec = v.ExecID
		case 2: // as it comes: the command still waits for its input
			if r := h.do("POST", "/v1/sandboxes/-/exec/"+exec+"/input", `{"data":"two\n","eof":true}`); r.status != 200 {
				t.Fatalf("input = %d %s", r.status, r.body)
			}
		}
	}
	all := strings.Join(got[1:], "\n")
	for _, want := range []string{`{"data":"one\n"}`, `{"data":"/w==","encoding":"base64"}`, `{"data":"two\n"}`, `"exit_code":7`} {
		if !strings.Contains(all, want) {
			t.Errorf("no %s in the stream:\n%s", want, all)
		}
	}
	if r := h.do("POST", "/v1/sandboxes/sbx_0000000000000000/exec", `{"command":"id"}`, header("Accept", mediaEvents)); r.status != 404 {
		t.Errorf("stream of no sandbox = %d", r.status)
	}
}
