package files

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox/guest"
)

// do runs an operation as the host sees it. It fails the test when it takes long:
// no file of a sandbox may hold it up.
func do(t testing.TB, dir string, o guest.FileOp, data string) (guest.FileAnswer, string, error) {
	t.Helper()
	var out bytes.Buffer
	done := make(chan error, 1)
	go func() { done <- Run(dir, o, guest.ChunkReader(strings.NewReader(data)), &out) }()
	var err error
	select {
	case err = <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s %s does not end", o.Op, o.Path)
	}
	r := bufio.NewReader(&out)
	a, aerr := guest.ReadFileAnswer(r)
	if aerr != nil {
		t.Fatalf("answer: %v", aerr)
	}
	rest, _ := io.ReadAll(r) // of memory
	return a, string(rest), err
}

func put(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestReadAndRefusals(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "a"), "0123456789")
	put(t, filepath.Join(dir, "sub/b"), "b")
	for _, err := range []error{
		unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644), os.Symlink("/dev/zero", filepath.Join(dir, "zero")), os.Symlink("loop", filepath.Join(dir, "loop")),
		os.Truncate(filepath.Join(dir, "a"), 10),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "sparse"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "sparse"), 1<<40); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		op   guest.FileOp
		code guest.FileErrorCode
		want string
	}{
		{"ok/whole", guest.FileOp{Op: guest.OpRead, Path: "a"}, "", "0123456789"},
		{"ok/range", guest.FileOp{Op: guest.OpRead, Path: "a", Offset: 2, Length: 3}, "", "234"},
		{"ok/tail", guest.FileOp{Op: guest.OpRead, Path: "a", Offset: -3}, "", "789"},
		{"ok/part of a sparse file", guest.FileOp{Op: guest.OpRead, Path: "sparse", Offset: 1 << 39, Length: 2}, "", "\x00\x00"},
		{"ok/dots stay where the kernel says", guest.FileOp{Op: guest.OpRead, Path: "sub/../a", Length: 1}, "", "0"},
		{"refused/nothing there", guest.FileOp{Op: guest.OpRead, Path: "none"}, guest.FileNotFound, ""},
		{"refused/file as a folder", guest.FileOp{Op: guest.OpRead, Path: "a/x"}, guest.FileNotFound, ""},
		{"refused/fifo", guest.FileOp{Op: guest.OpRead, Path: "fifo"}, guest.FileInvalid, ""},
		{"refused/device", guest.FileOp{Op: guest.OpRead, Path: "zero"}, guest.FileInvalid, ""},
		{"refused/loop", guest.FileOp{Op: guest.OpRead, Path: "loop"}, guest.FileInvalid, ""},
		{"refused/huge sparse file", guest.FileOp{Op: guest.OpRead, Path: "sparse"}, guest.FileTooLarge, ""},
		{"refused/behind the end", guest.FileOp{Op: guest.OpRead, Path: "a", Offset: 11}, guest.FileInvalid, ""},
		{"refused/empty path", guest.FileOp{Op: guest.OpRead}, guest.FileInvalid, ""},
		{"refused/zero byte", guest.FileOp{Op: guest.OpRead, Path: "a\x00b"}, guest.FileInvalid, ""},
		{"refused/list of a file", guest.FileOp{Op: guest.OpList, Path: "a"}, guest.FileInvalid, ""},
		{"refused/list of a fifo", guest.FileOp{Op: guest.OpList, Path: "fifo"}, guest.FileInvalid, ""},
		{"refused/write over a folder", guest.FileOp{Op: guest.OpWrite, Path: "sub"}, guest.FileInvalid, ""},
		{"refused/write to a folder's name", guest.FileOp{Op: guest.OpWrite, Path: "new/"}, guest.FileInvalid, ""},
		{"refused/mode with setuid", guest.FileOp{Op: guest.OpWrite, Path: "s", Mode: 0o4755}, guest.FileInvalid, ""},
		{"refused/delete the root", guest.FileOp{Op: guest.OpDelete, Path: "/../", Recursive: true}, guest.FileInvalid, ""},
		{"refused/delete a full folder", guest.FileOp{Op: guest.OpDelete, Path: "sub"}, guest.FileInvalid, ""},
		{"refused/unknown", guest.FileOp{Op: "chroot", Path: "a"}, guest.FileInvalid, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, got, err := do(t, dir, tt.op, "")
			if err != nil || a.Error != tt.code || got != tt.want {
				t.Errorf("%+v = %+v %q %v, want code %q, %q", tt.op, a, got, err, tt.code, tt.want)
			}
			if tt.code != "" && a.Message == "" {
				t.Error("a refusal without a message")
			}
		})
	}
}

func TestWriteReplacesAsAWhole(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "victim"), "untouched")
	put(t, filepath.Join(dir, "hard"), "one")
	put(t, filepath.Join(dir, "script"), "old")
	for _, err := range []error{
		os.Symlink("victim", filepath.Join(dir, "link")), os.Link(filepath.Join(dir, "hard"), filepath.Join(dir, "hard2")),
		os.Chmod(filepath.Join(dir, "script"), 0o755), unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"link", "hard", "script", "fifo", "new/deep/file"} {
		if a, _, err := do(t, dir, guest.FileOp{Op: guest.OpWrite, Path: name}, "text of "+name); err != nil || a.Error != "" {
			t.Fatalf("write %s: %+v %v", name, a, err)
		}
		st, err := os.Lstat(filepath.Join(dir, name))
		if err != nil || !st.Mode().IsRegular() {
			t.Fatalf("%s is %v, %v", name, st, err)
		}
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != "text of "+name {
			t.Errorf("%s = %q, %v", name, b, err)
		}
	}
	for name, want := range map[string]string{"victim": "untouched", "hard2": "one"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("a write went through a link: %s = %q, %v", name, b, err)
		}
	}
	if st, err := os.Stat(filepath.Join(dir, "script")); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("script lost its mode: %v %v", st.Mode(), err)
	}
}

func TestWriteThatBreaksOffLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "a"), "old")
	whole, err := io.ReadAll(guest.ChunkReader(strings.NewReader("new")))
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		var out bytes.Buffer
		if err := Run(dir, guest.FileOp{Op: guest.OpWrite, Path: "a"}, bytes.NewReader(whole[:n]), &out); err != nil {
			t.Fatal(err)
		}
		a, err := guest.ReadFileAnswer(bufio.NewReader(&out))
		if err != nil || a.Error != guest.FileFailed {
			t.Errorf("after %d of %d bytes: %+v, %v", n, len(whole), a, err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "a")); err != nil || string(b) != "old" {
		t.Errorf("a = %q, %v, want old", b, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v %v", left, err)
	}
}

func archive(t testing.TB, headers ...tar.Header) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		body := ""
		if h.Typeflag == tar.TypeReg {
			body = "body of " + h.Name
			h.Size = int64(len(body))
		}
		if err := errors.Join(w.WriteHeader(&h)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Threat 79: what an archive names outside its folder is never made.
func TestUnpackStaysInItsFolder(t *testing.T) {
	tests := []struct {
		name string
		in   []tar.Header
		code guest.FileErrorCode
	}{
		{"ok/files and folders", []tar.Header{{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "d/f", Typeflag: tar.TypeReg, Mode: 0o6755}}, ""},
		{"ok/link within", []tar.Header{{Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: "../f"}, {Name: "f", Typeflag: tar.TypeReg}}, ""},
		{"refused/dots", []tar.Header{{Name: "../outside", Typeflag: tar.TypeReg}}, guest.FileInvalid},
		{"refused/dots within", []tar.Header{{Name: "a/../../outside", Typeflag: tar.TypeReg}}, guest.FileInvalid},
		{"refused/absolute", []tar.Header{{Name: "/etc/outside", Typeflag: tar.TypeReg}}, guest.FileInvalid},
		{"refused/link out", []tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../outside"}}, guest.FileInvalid},
		{"refused/link out, absolute", []tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/outside"}}, guest.FileInvalid},
		{"refused/hard link", []tar.Header{{Name: "l", Typeflag: tar.TypeLink, Linkname: "../outside"}}, guest.FileInvalid},
		{"refused/device", []tar.Header{{Name: "dev", Typeflag: tar.TypeChar}}, guest.FileInvalid},
		{"refused/fifo", []tar.Header{{Name: "fifo", Typeflag: tar.TypeFifo}}, guest.FileInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			top := t.TempDir()
			a, _, err := do(t, top, guest.FileOp{Op: guest.OpUnpack, Path: "in"}, archive(t, tt.in...))
			if err != nil || a.Error != tt.code {
				t.Errorf("unpack = %+v %v, want code %q", a, err, tt.code)
			}
			outside(t, top)
		})
	}
	t.Run("refused/through a link that is there already", func(t *testing.T) {
		top := t.TempDir()
		put(t, filepath.Join(top, "in/x"), "")
		if err := os.Symlink("../", filepath.Join(top, "in/up")); err != nil {
			t.Fatal(err)
		}
		a, _, err := do(t, top, guest.FileOp{Op: guest.OpUnpack, Path: "in"}, archive(t, tar.Header{Name: "up/outside", Typeflag: tar.TypeReg}))
		if err != nil || a.Error == "" {
			t.Errorf("unpack = %+v %v, want a refusal", a, err)
		}
		outside(t, top)
	})
	t.Run("refused/cut off", func(t *testing.T) {
		full := archive(t, tar.Header{Name: "f", Typeflag: tar.TypeReg})
		if a, _, _ := do(t, t.TempDir(), guest.FileOp{Op: guest.OpUnpack, Path: "in"}, full[:514]); a.Error == "" {
			t.Error("half an archive was accepted")
		}
	})
}

// outside fails when something is in top but the folder "in".
func outside(t testing.TB, top string) {
	t.Helper()
	entries, err := os.ReadDir(top)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "in" {
			t.Errorf("%s was made outside the folder", e.Name())
		}
	}
	err = filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if st, err := d.Info(); err == nil && st.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
			t.Errorf("%s has %v", p, st.Mode())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestFolderTravelsAsATar(t *testing.T) {
	top := t.TempDir()
	put(t, filepath.Join(top, "src/a"), "a")
	put(t, filepath.Join(top, "src/d/b"), "b")
	for _, err := range []error{
		os.Symlink("d/b", filepath.Join(top, "src/l")), unix.Mkfifo(filepath.Join(top, "src/fifo"), 0o644), os.Symlink("/etc/passwd", filepath.Join(top, "src/away")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	a, got, err := do(t, top, guest.FileOp{Op: guest.OpRead, Path: "src"}, "")
	if err != nil || a.Info == nil || a.Info.Kind != guest.KindDir {
		t.Fatalf("read of a folder = %+v %v", a, err)
	}
	names := map[string]byte{}
	r := tar.NewReader(strings.NewReader(got))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names[h.Name] = h.Typeflag
	}
	if len(names) != 5 || names["a"] != tar.TypeReg || names["d/"] != tar.TypeDir || names["d/b"] != tar.TypeReg || names["l"] != tar.TypeSymlink {
		t.Errorf("archive has %v", names)
	}
}

func TestListIsBoundedAndFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	for i := range guest.MaxFileEntries + 5 {
		put(t, filepath.Join(dir, "many", strings.Repeat("x", i%7)+string(rune('a'+i%26))+time.Duration(i).String()), "")
	}
	if err := os.Symlink("/etc", filepath.Join(dir, "etc")); err != nil {
		t.Fatal(err)
	}
	a, _, err := do(t, dir, guest.FileOp{Op: guest.OpList, Path: "many"}, "")
	if err != nil || len(a.Entries) != guest.MaxFileEntries || !a.Truncated {
		t.Errorf("list = %d entries, truncated %v, %v", len(a.Entries), a.Truncated, err)
	}
	a, _, err = do(t, dir, guest.FileOp{Op: guest.OpList, Path: "."}, "")
	if err != nil || len(a.Entries) != 2 || a.Entries[0].Kind != guest.KindLink || a.Entries[0].Target != "/etc" {
		t.Errorf("list = %+v, %v", a, err)
	}
}

// FuzzUnpackStaysInItsFolder feeds archives that are mutations of hostile ones.
func FuzzUnpackStaysInItsFolder(f *testing.F) {
	f.Add([]byte(archive(f, tar.Header{Name: "../x", Typeflag: tar.TypeReg})))
	f.Add([]byte(archive(f, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "d"}, tar.Header{Name: "l/x", Typeflag: tar.TypeReg, Mode: 0o4777})))
	f.Add([]byte(archive(f, tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"})))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<20 {
			t.Skip()
		}
		top := t.TempDir()
		var out bytes.Buffer
		if err := Run(top, guest.FileOp{Op: guest.OpUnpack, Path: "in"}, guest.ChunkReader(bytes.NewReader(data)), &out); err != nil {
			t.Fatal(err)
		}
		outside(t, top)
	})
}

func FuzzPathsNeverPanic(f *testing.F) {
	for _, p := range []string{"a", "..", "/", "/proc/self/root", "a/../b", ".", strings.Repeat("a/", 3000)} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p string) {
		var out bytes.Buffer
		o := guest.FileOp{Op: guest.OpStat, Path: p}
		if err := Run(t.TempDir(), o, nil, &out); err != nil {
			t.Fatal(err)
		}
		if _, err := guest.ReadFileAnswer(bufio.NewReader(&out)); err != nil {
			t.Errorf("stat %q: %v", p, err)
		}
	})
}
