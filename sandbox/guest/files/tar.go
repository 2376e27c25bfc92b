package files

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

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox/guest"
)

func randomBytes() []byte {
	b := make([]byte, 8)
	_, _ = rand.Read(b) // never fails
	return b
}

// pack writes folder p as a tar archive with names relative to it. Files, folders
// and links are packed, no owner, and nothing else: reading a fifo would hold us up.
func pack(p string, out io.Writer) error {
	root, err := os.OpenRoot(p)
	if err != nil {
		return err
	}
	defer root.Close()
	w := tar.NewWriter(out)
	entries, left := 0, int64(guest.MaxFileBytes)
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // gone meanwhile
			}
			return err
		}
		if name == "." {
			return nil
		}
		if entries++; entries > guest.MaxTarEntries {
			return fmt.Errorf("more than %d entries", guest.MaxTarEntries)
		}
		n, err := packOne(root, w, name, left)
		left -= n
		return err
	})
	if err != nil {
		return err
	}
	return w.Close()
}

func packOne(root *os.Root, w *tar.Writer, name string, left int64) (int64, error) {
	st, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	h := &tar.Header{Name: name, Mode: int64(st.Mode().Perm()), ModTime: st.ModTime()}
	switch {
	case st.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		return 0, w.WriteHeader(h)
	case st.Mode()&fs.ModeSymlink != 0:
		if h.Linkname, err = root.Readlink(name); err != nil {
			return 0, err
		}
		h.Typeflag = tar.TypeSymlink
		return 0, w.WriteHeader(h)
	case !st.Mode().IsRegular():
		return 0, nil
	}
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	// Again, of what was opened: it may have been swapped.
	if st, err = f.Stat(); err != nil || !st.Mode().IsRegular() {
		return 0, err
	}
	if st.Size() > left {
		return 0, fmt.Errorf("more than %d bytes", int64(guest.MaxFileBytes))
	}
	h.Typeflag, h.Size = tar.TypeReg, st.Size()
	if err := w.WriteHeader(h); err != nil {
		return 0, err
	}
	return io.CopyN(w, f, st.Size())
}

// unpack extracts a tar archive into folder p, which is made. A name that leads out
// of it, a link that does, a hard link, device or fifo ends it with an error; what was
// extracted before stays.
func unpack(p string, data io.Reader) (guest.FileAnswer, error) {
	if err := os.MkdirAll(p, 0o755); err != nil {
		return guest.FileAnswer{}, err
	}
	root, err := os.OpenRoot(p)
	if err != nil {
		return guest.FileAnswer{}, err
	}
	defer root.Close()
	var a guest.FileAnswer
	limited := &io.LimitedReader{R: data, N: guest.MaxFileBytes}
	r := tar.NewReader(limited)
	for {
		h, err := r.Next()
		if err == io.EOF {
			// The archive's end is not the stream's: without that it may be a part of it.
			if _, err := io.Copy(io.Discard, limited); err != nil || limited.N == 0 {
				return a, refuse(guest.FileFailed, "the archive broke off after %d entries", a.Count)
			}
			return a, nil
		}
		if err != nil {
			if limited.N == 0 {
				return a, refuse(guest.FileTooLarge, "the archive exceeds %d bytes", int64(guest.MaxFileBytes))
			}
			return a, refuse(guest.FileInvalid, "after %d entries: not a complete tar archive: %v", a.Count, err)
		}
		if a.Count++; a.Count > guest.MaxTarEntries {
			return a, refuse(guest.FileTooLarge, "the archive has more than %d entries", guest.MaxTarEntries)
		}
		n, err := unpackOne(root, h, r)
		if err != nil {
			return a, fmt.Errorf("%s: %w", clip(h.Name), err)
		}
		a.Length += n
	}
}

func unpackOne(root *os.Root, h *tar.Header, r io.Reader) (int64, error) {
	name, err := Local(h.Name)
	if err != nil {
		return 0, err
	}
	mode := os.FileMode(h.Mode) & 0o777 // never setuid, setgid or sticky
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return 0, nil
	case tar.TypeDir:
		if name == "." {
			return 0, nil
		}
		return 0, root.MkdirAll(name, mode|0o700)
	case tar.TypeReg:
		if dir := path.Dir(name); dir != "." {
			if err := root.MkdirAll(dir, 0o755); err != nil {
				return 0, err
			}
		}
		a, err := writeIn(root, name, max(mode, 0o400), r)
		return a.Length, err
	case tar.TypeSymlink:
		// Relative and within the folder, by its text: what else is there may change.
		if _, err := Local(path.Join(path.Dir(name), h.Linkname)); err != nil || path.IsAbs(h.Linkname) {
			return 0, refuse(guest.FileInvalid, "%s is a link that leads out of the folder", clip(h.Name))
		}
		if dir := path.Dir(name); dir != "." {
			if err := root.MkdirAll(dir, 0o755); err != nil {
				return 0, err
			}
		}
		if st, err := root.Lstat(name); err == nil && !st.IsDir() {
			if err := root.Remove(name); err != nil {
				return 0, err
			}
		}
		return 0, root.Symlink(h.Linkname, name)
	default:
		return 0, refuse(guest.FileInvalid, "%s is neither a file, a folder nor a symbolic link", clip(h.Name))
	}
}

// Local returns the clean form of a name in an archive, or refuses one that is
// absolute or leads out.
func Local(name string) (string, error) {
	clean := path.Clean(name)
	if name == "" || strings.ContainsRune(name, 0) || len(name) > guest.MaxPath || !filepath.IsLocal(clean) {
		return "", refuse(guest.FileInvalid, "%q does not stay in the folder", clip(name))
	}
	return clean, nil
}

func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}
