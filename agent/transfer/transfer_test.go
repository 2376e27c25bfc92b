package transfer

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		body := ""
		if h.Typeflag == tar.TypeReg {
			body = "body of " + h.Name
			h.Size = int64(len(body))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// contents returns the regular files below dir, and fails for anything that is
// neither one of those nor a folder.
func contents(t testing.TB, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		if !st.Mode().IsRegular() || st.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0 || st.Mode().Perm()&0o022 != 0 {
			t.Errorf("%s has mode %v", p, st.Mode())
		}
		b, err := os.ReadFile(p)
		rel, rerr := filepath.Rel(dir, p)
		if rerr != nil {
			return rerr
		}
		got[rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// Threat 90.
func TestUnpackOfAHostileArchive(t *testing.T) {
	tests := []struct {
		name   string
		in     tar.Header
		denied bool // the whole archive, as an attack
	}{
		{"left out/symlink out", tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../.."}, false},
		{"left out/symlink within", tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "a"}, false},
		{"left out/hard link", tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}, false},
		{"left out/device", tar.Header{Name: "d", Typeflag: tar.TypeBlock}, false},
		{"left out/fifo", tar.Header{Name: "d", Typeflag: tar.TypeFifo}, false},
		{"left out/git hook", tar.Header{Name: "x/.git/hooks/post-checkout", Typeflag: tar.TypeReg, Mode: 0o755}, false},
		{"left out/git hook, other case", tar.Header{Name: ".GIT/hooks/post-checkout", Typeflag: tar.TypeReg}, false},
		{"left out/envrc", tar.Header{Name: ".envrc", Typeflag: tar.TypeReg}, false},
		{"left out/editor settings", tar.Header{Name: ".vscode/tasks.json", Typeflag: tar.TypeReg}, false},
		{"left out/agent settings", tar.Header{Name: "sub/.claude/settings.json", Typeflag: tar.TypeReg}, false},
		{"refused/dots", tar.Header{Name: "../evil", Typeflag: tar.TypeReg}, true},
		{"refused/dots within", tar.Header{Name: "a/../../evil", Typeflag: tar.TypeReg}, true},
		{"refused/absolute", tar.Header{Name: "/tmp/evil", Typeflag: tar.TypeReg}, true},
		{"refused/backslash", tar.Header{Name: `..\evil`, Typeflag: tar.TypeReg}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			top := t.TempDir()
			dst := filepath.Join(top, "dst")
			data := archive(t, tar.Header{Name: "ok", Typeflag: tar.TypeReg, Mode: 0o4777}, tt.in, tar.Header{Name: "last", Typeflag: tar.TypeReg})
			res, err := Unpack(dst, bytes.NewReader(data), false)
			want := map[string]string{"dst/ok": "body of ok"}
			if tt.denied {
				if sandbox.KindOf(err) != sandbox.KindPolicy {
					t.Errorf("Unpack = %v, want %s", err, sandbox.KindPolicy)
				}
			} else {
				want["dst/last"] = "body of last"
				if err != nil || len(res.Skipped) != 1 || res.Files != 2 {
					t.Errorf("Unpack = %+v, %v, want one left out", res, err)
				}
			}
			got := contents(t, top)
			for k, v := range want {
				if got[k] != v {
					t.Errorf("%s = %q, want %q", k, got[k], v)
				}
				delete(got, k)
			}
			if len(got) > 0 {
				t.Errorf("also made: %v", got)
			}
		})
	}
}

func TestUnpackFollowsNoLinkThatIsThere(t *testing.T) {
	top := t.TempDir()
	dst := filepath.Join(top, "dst")
	if err := os.MkdirAll(filepath.Join(top, "else"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dst, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../else", filepath.Join(dst, "way")); err != nil {
		t.Fatal(err)
	}
	if _, err := Unpack(dst, bytes.NewReader(archive(t, tar.Header{Name: "way/x", Typeflag: tar.TypeReg})), true); err == nil {
		t.Error("Unpack went through a link out of the destination")
	}
	if left, err := os.ReadDir(filepath.Join(top, "else")); err != nil || len(left) > 0 {
		t.Errorf("left %v %v", left, err)
	}
}

func TestUnsafeTakesWhatToolsObey(t *testing.T) {
	dst := t.TempDir()
	if _, err := Unpack(dst, bytes.NewReader(archive(t, tar.Header{Name: ".git/config", Typeflag: tar.TypeReg})), true); err != nil {
		t.Fatal(err)
	}
	if contents(t, dst)[".git/config"] == "" {
		t.Error("--unsafe left it out")
	}
}

func TestPackLeavesOutWhatLeadsAway(t *testing.T) {
	src := t.TempDir()
	for name, text := range map[string]string{"a": "a", "d/b": "b"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(src, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(src, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		os.Symlink("d/b", filepath.Join(src, "in")), os.Symlink("/etc/passwd", filepath.Join(src, "abs")),
		os.Symlink("../x", filepath.Join(src, "d/up2")), os.Symlink("../../x", filepath.Join(src, "d/out")), unix.Mkfifo(filepath.Join(src, "fifo"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	res, err := Pack(src, func(r io.Reader) error {
		_, err := b.ReadFrom(r)
		return err
	})
	if err != nil || res.Files != 2 || len(res.Skipped) != 3 {
		t.Errorf("Pack = %+v, %v, want 2 files and 3 left out", res, err)
	}
	var names []string
	r := tar.NewReader(&b)
	for {
		h, err := r.Next()
		if err != nil {
			break
		}
		names = append(names, h.Name)
	}
	if got := strings.Join(names, " "); got != "a d/ d/b d/up2 in" {
		t.Errorf("archive has %s", got)
	}
}

func TestWriteFileThatFailsLeavesTheOldOne(t *testing.T) {
	dst := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(dst, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := io.MultiReader(strings.NewReader("ne"), errReader{})
	if _, err := WriteFile(dst, 0o644, broken); err == nil {
		t.Error("WriteFile = nil, want the reader's error")
	}
	if got := contents(t, filepath.Dir(dst)); len(got) != 1 || got["f"] != "old" {
		t.Errorf("left %v", got)
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// FuzzUnpackStaysBelowItsDestination also asserts that no link is ever made.
func FuzzUnpackStaysBelowItsDestination(f *testing.F) {
	f.Add(archive(f, tar.Header{Name: "../x", Typeflag: tar.TypeReg}))
	f.Add(archive(f, tar.Header{Name: "a/b", Typeflag: tar.TypeReg}, tar.Header{Name: "a/l", Typeflag: tar.TypeSymlink, Linkname: "/"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		top := t.TempDir()
		_, _ = Unpack(filepath.Join(top, "dst"), bytes.NewReader(data), true) // what it refuses does not matter here
		for name := range contents(t, top) {
			if !strings.HasPrefix(name, "dst/") {
				t.Errorf("made %s", name)
			}
		}
	})
}
