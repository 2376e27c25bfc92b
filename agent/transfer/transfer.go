package transfer

import (
	"archive/tar"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/podspawn/podspawn/sandbox"
)

// Bounds of one transfer.
const (
	maxEntries = 200_000
	maxBytes   = 4 << 30
	maxName    = 4096
	maxSkipped = 1000 // that are named
)

// Result says what was moved. Skipped names what was left out, with the reason.
type Result struct {
	Files   int
	Bytes   int64
	Skipped []string
}

func (r *Result) skip(name, why string) {
	if len(r.Skipped) < maxSkipped {
		r.Skipped = append(r.Skipped, clip(name)+": "+why)
	}
}

// obeyed are names, in lower case, of what tools on a developer's machine execute
// or obey when they find it in a folder: hooks, settings with commands, environments.
func obeyed(element string) bool {
	switch strings.ToLower(strings.TrimRight(element, ". ")) {
	case ".git", ".envrc", ".vscode", ".idea", ".claude", ".cursor", ".cursorrules", ".mcp.json", ".codex", ".gemini",
		"claude.md", "agents.md", ".devcontainer", ".devcontainer.json", ".husky", ".githooks", ".direnv", ".tool-versions",
		".mise.toml", ".bashrc", ".profile", ".zshrc", ".ssh", ".podspawn", ".npmrc", ".gitconfig":
		return true
	}
	return strings.HasPrefix(strings.ToLower(element), "git~") // .git by its short name on some file systems
}

// Unpack extracts an archive from a sandbox into folder dst, which is made. A name
// that leads out of dst is an attack and ends it with an error. Links, special files
// and, unless unsafe, what tools obey are left out and named.
func Unpack(dst string, archive io.Reader, unsafe bool) (Result, error) {
	var res Result
	if err := os.MkdirAll(dst, 0o755); err != nil {
		return res, err
	}
	root, err := os.OpenRoot(dst)
	if err != nil {
		return res, err
	}
	defer root.Close()
	r := tar.NewReader(archive)
	for entries := 0; ; entries++ {
		h, err := r.Next()
		if err == io.EOF {
			_, err = io.Copy(io.Discard, io.LimitReader(archive, 1<<20)) // the end may bring an error
			return res, err
		}
		if err != nil {
			return res, fmt.Errorf("read the archive: %w", err)
		}
		if entries >= maxEntries {
			return res, hostile("the archive has more than %d entries", maxEntries)
		}
		if err := unpackOne(root, h, r, unsafe, &res); err != nil {
			return res, err
		}
	}
}

func hostile(format string, args ...any) error {
	return sandbox.Errorf(sandbox.KindPolicy, "the sandbox sends what an honest one does not; destroy it", format, args...)
}

func unpackOne(root *os.Root, h *tar.Header, r io.Reader, unsafe bool, res *Result) error {
	name := path.Clean(h.Name)
	if h.Name == "" || len(h.Name) > maxName || !filepath.IsLocal(filepath.FromSlash(name)) || strings.ContainsAny(h.Name, "\x00\\") {
		return hostile("the archive names %q, which is not below the destination", clip(h.Name))
	}
	if !unsafe {
		for element := range strings.SplitSeq(name, "/") {
			if obeyed(element) {
				res.skip(name, "other programs obey it (--unsafe takes it)")
				return nil
			}
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if name == "." {
			return nil
		}
		return root.MkdirAll(filepath.FromSlash(name), 0o755)
	case tar.TypeReg:
	case tar.TypeXGlobalHeader:
		return nil
	default:
		res.skip(name, "it is a link or a special file")
		return nil
	}
	if h.Size > maxBytes-res.Bytes {
		return sandbox.Errorf(sandbox.KindInvalidSpec, "copy it in parts", "there are more than %d bytes", int64(maxBytes))
	}
	mode := fs.FileMode(0o644)
	if h.Mode&0o111 != 0 {
		mode = 0o755
	}
	if dir := path.Dir(name); dir != "." {
		if err := root.MkdirAll(filepath.FromSlash(dir), 0o755); err != nil {
			return err
		}
	}
	n, err := writeIn(root, filepath.FromSlash(name), mode, r)
	if err != nil {
		return err
	}
	res.Files++
	res.Bytes += n
	return nil
}

// WriteFile replaces dst by what r gives: complete, or not at all.
func WriteFile(dst string, mode fs.FileMode, r io.Reader) (int64, error) {
	root, err := os.OpenRoot(filepath.Dir(dst))
	if err != nil {
		return 0, err
	}
	defer root.Close()
	return writeIn(root, filepath.Base(dst), mode, r)
}

// writeIn writes beside name first; a link that is there is replaced, not followed.
func writeIn(root *os.Root, name string, mode fs.FileMode, r io.Reader) (n int64, err error) {
	if st, err := root.Lstat(name); err == nil && st.IsDir() {
		return 0, fmt.Errorf("%s is a folder", clip(name))
	}
	var suffix [6]byte
	_, _ = rand.Read(suffix[:]) // never fails
	temp := filepath.Join(filepath.Dir(name), fmt.Sprintf(".podspawn-%x.tmp", suffix))
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return 0, err
	}
	n, err = io.Copy(f, r)
	if err = errors.Join(err, f.Close()); err == nil {
		err = root.Rename(temp, name)
	}
	if err != nil {
		_ = root.Remove(temp) // the first error is the one to report
	}
	return n, err
}

// Pack gives the folder src to send as a tar archive, and returns send's error, or
// its own. Files, folders and links within the folder are packed.
func Pack(src string, send func(io.Reader) error) (Result, error) {
	r, w := io.Pipe()
	var res Result
	packed := make(chan error, 1)
	go func() {
		err := pack(src, w, &res)
		_ = w.CloseWithError(err) // never fails
		packed <- err
	}()
	err := send(r)
	_ = r.CloseWithError(errors.New("not read to its end")) // ends the packer
	if perr := <-packed; perr != nil && err == nil {
		err = perr
	}
	return res, err
}

func pack(src string, out io.Writer, res *Result) error {
	root, err := os.OpenRoot(src)
	if err != nil {
		return err
	}
	defer root.Close()
	w := tar.NewWriter(out)
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		h := &tar.Header{Name: name, Mode: int64(st.Mode().Perm()), ModTime: st.ModTime()}
		switch {
		case st.IsDir():
			h.Typeflag, h.Name = tar.TypeDir, name+"/"
			return w.WriteHeader(h)
		case st.Mode()&fs.ModeSymlink != 0:
			if h.Linkname, err = root.Readlink(name); err != nil {
				return err
			}
			if path.IsAbs(h.Linkname) || !filepath.IsLocal(path.Join(path.Dir(name), h.Linkname)) {
				res.skip(name, "the link leads out of the folder")
				return nil
			}
			h.Typeflag = tar.TypeSymlink
			return w.WriteHeader(h)
		case !st.Mode().IsRegular():
			res.skip(name, "it is a special file")
			return nil
		}
		return packFile(root, w, h, name, res)
	})
	if err != nil {
		return err
	}
	return w.Close()
}

func packFile(root *os.Root, w *tar.Writer, h *tar.Header, name string, res *Result) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() > maxBytes-res.Bytes {
		return sandbox.Errorf(sandbox.KindInvalidSpec, "copy it in parts, or with rsync over ssh", "there are more than %d bytes", int64(maxBytes))
	}
	h.Typeflag, h.Size = tar.TypeReg, st.Size()
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.CopyN(w, f, st.Size())
	if err == io.EOF {
		return fmt.Errorf("%s became shorter while it was read", name)
	}
	res.Files++
	res.Bytes += n
	return err
}

func clip(s string) string {
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}
