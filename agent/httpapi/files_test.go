package httpapi

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podspawn/podspawn/agent/agenttest"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

func TestFilesOverHTTP(t *testing.T) {
	h := start(t)
	base := "/v1/sandboxes/" + string(h.create().ID) + "/files"
	if r := h.do("PUT", base+"?path=d/a.txt&mode=0600", "0123456789"); r.status != 200 || !strings.Contains(string(r.body), `"size":10`) {
		t.Fatalf("PUT = %d %s", r.status, r.body)
	}
	if st, err := os.Stat(filepath.Join(h.daemon.Work(), "d/a.txt")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("a.txt: %v, %v", st, err)
	}
	reads := []struct {
		ranges string
		status int
		body   string
		where  string
	}{
		{"", 200, "0123456789", ""},
		{"bytes=2-4", 206, "234", "bytes 2-4/10"},
		{"bytes=8-99", 206, "89", "bytes 8-9/10"},
		{"bytes=7-", 206, "789", "bytes 7-9/10"},
		{"bytes=-3", 206, "789", "bytes 7-9/10"},
		{"bytes=0-1,3-4", 200, "0123456789", ""},
		{"lines=1-2", 200, "0123456789", ""},
		{"bytes=10-", 416, "", "bytes */10"},
		{"bytes=4-2", 416, "", ""},
	}
	for _, tt := range reads {
		r := h.do("GET", base+"?path=d/a.txt", "", header("Range", tt.ranges))
		if r.status != tt.status || tt.status < 300 && string(r.body) != tt.body || r.header.Get("Content-Range") != tt.where {
			t.Errorf("Range %q = %d %q %q, want %d %q %q", tt.ranges, r.status, r.body, r.header.Get("Content-Range"), tt.status, tt.body, tt.where)
		}
		if tt.status < 300 && (r.header.Get("Content-Disposition") != "attachment" || r.header.Get("Content-Type") != "application/octet-stream") {
			t.Errorf("a browser would show it: %v", r.header)
		}
	}
	if r := h.do("GET", base+"/list?path=d", ""); r.status != 200 || !strings.Contains(string(r.body), `"name":"a.txt","type":"file","size":10,"mode":"0600"`) {
		t.Errorf("list = %d %s", r.status, r.body)
	}
	// A folder out, and in again under another name.
	out := h.do("GET", base+"?path=d", "")
	if out.status != 200 || out.header.Get("Content-Type") != mediaTar {
		t.Fatalf("GET of a folder = %d %v", out.status, out.header)
	}
	if r := h.do("PUT", base+"?path=e", string(out.body), header("Content-Type", mediaTar)); r.status != 200 {
		t.Fatalf("PUT of a folder = %d %s", r.status, r.body)
	}
	if b, err := os.ReadFile(filepath.Join(h.daemon.Work(), "e/a.txt")); err != nil || string(b) != "0123456789" {
		t.Errorf("e/a.txt = %q, %v", b, err)
	}
	if r := h.do("DELETE", base+"?path=e", ""); r.status != 400 {
		t.Errorf("DELETE of a full folder = %d, want 400", r.status)
	}
	if r := h.do("DELETE", base+"?path=e&recursive=true", ""); r.status != 204 || len(r.body) > 0 {
		t.Errorf("DELETE = %d %s", r.status, r.body)
	}
	if n := len(h.daemon.Requests(localapi.OpExec)); n < 10 {
		t.Errorf("%d requests to the daemon", n)
	}
}

func TestFileRefusals(t *testing.T) {
	h := start(t)
	base := "/v1/sandboxes/" + string(h.create().ID) + "/files"
	var evil bytes.Buffer
	w := tar.NewWriter(&evil)
	if err := w.WriteHeader(&tar.Header{Name: "../evil", Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	_ = w.Close() // in memory
	tests := []struct {
		name, method, path, body string
		edit                     func(*http.Request)
		status                   int
		code                     sandbox.Kind
	}{
		{"no path", "GET", base, "", nil, 400, sandbox.KindInvalidSpec},
		{"unknown query", "GET", base + "?path=a&paht=b", "", nil, 400, sandbox.KindUnknownField},
		{"nothing there", "GET", base + "?path=none", "", nil, 404, sandbox.KindNotFound},
		{"zero byte", "GET", base + "?path=a%00b", "", nil, 400, sandbox.KindInvalidSpec},
		{"setuid", "PUT", base + "?path=a&mode=4755", "x", nil, 400, sandbox.KindInvalidSpec},
		{"zip slip", "PUT", base + "?path=in", evil.String(), header("Content-Type", mediaTar), 400, sandbox.KindInvalidSpec},
		{"no archive", "PUT", base + "?path=in", "hello", header("Content-Type", mediaTar), 400, sandbox.KindInvalidSpec},
		{"encoded", "PUT", base + "?path=in", "hello", header("Content-Encoding", "gzip"), 415, sandbox.KindInvalidSpec},
		{"root", "DELETE", base + "?path=/&recursive=true", "", nil, 400, sandbox.KindInvalidSpec},
		{"another tenant", "GET", base + "?path=a", "", token(agenttest.Bob), 404, sandbox.KindNotFound},
		{"read scope", "GET", base + "?path=a", "", token(agenttest.Reader), 403, sandbox.KindInsufficientScope},
		{"no sandbox", "PUT", "/v1/sandboxes/sbx_0000000000000000/files?path=a", "x", nil, 404, sandbox.KindNotFound},
	}
	for _, tt := range tests {
		t.Run("refused/"+tt.name, func(t *testing.T) {
			edit := []func(*http.Request){}
			if tt.edit != nil {
				edit = append(edit, tt.edit)
			}
			if r := h.do(tt.method, tt.path, tt.body, edit...); r.status != tt.status || r.problem.Code != tt.code {
				t.Errorf("= %d %s, want %d %s", r.status, r.body, tt.status, tt.code)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(h.daemon.Work()), "evil")); err == nil {
		t.Error("the archive got out of its folder")
	}
}

// An upload whose client goes away in the middle leaves the old file, and nothing else.
func TestUploadThatBreaksOffWritesNothing(t *testing.T) {
	h := start(t)
	id := h.create().ID
	if err := os.WriteFile(filepath.Join(h.daemon.Work(), "a"), []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "PUT /v1/sandboxes/%s/files?path=a HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Length: 1000\r\n\r\n%s",
		id, h.addr, agenttest.Alice.Reveal(), strings.Repeat("x", 500)); err != nil {
		t.Fatal(err)
	}
	wait := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal(what)
			}
		}
	}
	entries := func() int {
		e, err := os.ReadDir(h.daemon.Work())
		if err != nil {
			t.Fatal(err)
		}
		return len(e)
	}
	wait("the upload does not begin", func() bool { return entries() == 2 })
	_ = conn.Close() // the client's end is what is tested
	wait("a part of the upload is left", func() bool { return entries() == 1 })
	if b, err := os.ReadFile(filepath.Join(h.daemon.Work(), "a")); err != nil || string(b) != "old" {
		t.Errorf("a = %q, %v, want old", b, err)
	}
}

// Threat 82: a download that nobody reads, or that is broken off, ends.
func TestDownloadEndsWithItsReader(t *testing.T) {
	h := start(t)
	id := h.create().ID
	if err := os.WriteFile(filepath.Join(h.daemon.Work(), "big"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(h.daemon.Work(), "big"), 1<<30); err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", h.base+"/v1/sandboxes/"+string(id)+"/files?path=big", nil)
	if err != nil {
		t.Fatal(err)
	}
	token(agenttest.Alice)(req)
	resp, err := h.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, 1<<20); err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	for end := time.Now().Add(10 * time.Second); !strings.Contains(h.log.String(), "transfer broke off"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the transfer goes on without its reader")
		}
	}
	// goleak in TestMain sees the rest.
}
