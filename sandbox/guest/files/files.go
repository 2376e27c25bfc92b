package files

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox/guest"
)

// Main is the process: op is a guest.FileOp in JSON. Failures are answers, and the
// status is 1 only when the answer, or the bytes behind it, could not be sent whole.
func Main(op string, in io.Reader, out io.Writer) int {
	var o guest.FileOp
	if err := json.Unmarshal([]byte(op), &o); err != nil {
		o.Op = ""
	}
	if o.Op.Writes() {
		var stop func()
		in, stop = breakable(in)
		defer stop()
	}
	w := bufio.NewWriterSize(out, 64<<10)
	if err := errors.Join(Run(".", o, in, w), w.Flush()); err != nil {
		return 1
	}
	return 0
}

// breakable returns in as a reader that breaks off when the host is gone: the
// guest then ends us with these signals, and what is half written must go first.
func breakable(in io.Reader) (io.Reader, func()) {
	r, w := io.Pipe()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGHUP, unix.SIGTERM)
	over := make(chan struct{})
	go func() {
		select {
		case <-signals:
			_ = w.CloseWithError(io.ErrUnexpectedEOF) // never fails
		case <-over:
		}
	}()
	// Not waited for: it may be in a Read of stdin, which ends with the process.
	go func() {
		_, err := io.Copy(w, in)
		_ = w.CloseWithError(err) // nil is the end
	}()
	return r, func() {
		close(over)
		signal.Stop(signals)
	}
}

// Run carries out o; relative paths start in dir. It returns an error only when the
// answer or its data could not be written whole.
func Run(dir string, o guest.FileOp, in io.Reader, out io.Writer) error {
	if err := o.Check(); err != nil {
		return answer(out, guest.FileAnswer{Error: guest.FileInvalid, Message: err.Error()})
	}
	p := o.Path
	if !filepath.IsAbs(p) {
		p = dir + "/" + p // not cleaned: what .. means behind a link is the kernel's to say
	}
	var a guest.FileAnswer
	var err error
	switch o.Op {
	case guest.OpStat:
		a, err = stat(p)
	case guest.OpList:
		a, err = list(p)
	case guest.OpRead:
		return read(p, o, out)
	case guest.OpWrite:
		a, err = write(p, os.FileMode(o.Mode), guest.UnchunkReader(in))
	case guest.OpUnpack:
		a, err = unpack(p, guest.UnchunkReader(in))
	case guest.OpDelete:
		a, err = remove(p, o.Recursive)
	}
	if err != nil {
		a = failed(err)
	}
	return answer(out, a)
}

func answer(out io.Writer, a guest.FileAnswer) error {
	b, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	_, err = out.Write(append(b, '\n'))
	return err
}

// problem is a failure with its code.
type problem struct {
	code guest.FileErrorCode
	msg  string
}

func (p *problem) Error() string { return p.msg }

func refuse(code guest.FileErrorCode, format string, args ...any) error {
	return &problem{code, fmt.Sprintf(format, args...)}
}

func failed(err error) guest.FileAnswer {
	if p, ok := errors.AsType[*problem](err); ok {
		return guest.FileAnswer{Error: p.code, Message: p.msg}
	}
	code := guest.FileFailed
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		code = guest.FileNotFound
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		code = guest.FileDenied
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		code = guest.FileNoSpace
	case errors.Is(err, unix.EISDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.EINVAL):
		code = guest.FileInvalid
	}
	msg := err.Error()
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		msg = pe.Path + ": " + pe.Err.Error()
	}
	return guest.FileAnswer{Error: code, Message: msg}
}

// open opens for reading what can be read without waiting: a fifo without a
// writer, or a device, would hold us up for ever.
func open(p string) (*os.File, fs.FileInfo, error) {
	f, err := os.OpenFile(p, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	if !st.Mode().IsRegular() && !st.IsDir() {
		f.Close()
		return nil, nil, refuse(guest.FileInvalid, "%s is neither a file nor a folder", p)
	}
	return f, st, nil
}

func stat(p string) (guest.FileAnswer, error) {
	st, err := os.Stat(p)
	if err != nil {
		return guest.FileAnswer{}, err
	}
	i := info(st, "")
	i.Name = filepath.Base(p)
	return guest.FileAnswer{Info: &i}, nil
}

func info(st fs.FileInfo, target string) guest.FileInfo {
	i := guest.FileInfo{
		Name: strings.ToValidUTF8(st.Name(), "\uFFFD"), Kind: guest.KindOther, Mode: uint32(st.Mode().Perm()),
		Modified: st.ModTime().UTC(), Target: strings.ToValidUTF8(target, "\uFFFD"),
	}
	switch {
	case st.Mode().IsRegular():
		i.Kind, i.Size = guest.KindFile, st.Size()
	case st.IsDir():
		i.Kind = guest.KindDir
	case st.Mode()&fs.ModeSymlink != 0:
		i.Kind = guest.KindLink
	}
	return i
}

func list(p string) (guest.FileAnswer, error) {
	f, st, err := open(p)
	if err != nil {
		return guest.FileAnswer{}, err
	}
	defer f.Close()
	if !st.IsDir() {
		return guest.FileAnswer{}, refuse(guest.FileInvalid, "%s is not a folder", p)
	}
	root, err := os.OpenRoot(p)
	if err != nil {
		return guest.FileAnswer{}, err
	}
	defer root.Close()
	a := guest.FileAnswer{Entries: []guest.FileInfo{}}
	// One more than is shown, to know whether there are more.
	names, err := f.Readdirnames(guest.MaxFileEntries + 1)
	if err != nil && err != io.EOF {
		return a, err
	}
	if len(names) > guest.MaxFileEntries {
		names, a.Truncated = names[:guest.MaxFileEntries], true
	}
	slices.Sort(names)
	for _, name := range names {
		st, err := root.Lstat(name)
		if err != nil {
			continue // gone meanwhile
		}
		target := ""
		if st.Mode()&fs.ModeSymlink != 0 {
			target, _ = root.Readlink(name) // "" when gone meanwhile
		}
		a.Entries = append(a.Entries, info(st, target))
	}
	return a, nil
}

func read(p string, o guest.FileOp, out io.Writer) error {
	f, st, err := open(p)
	if err != nil {
		return answer(out, failed(err))
	}
	defer f.Close()
	i := info(st, "")
	i.Name = filepath.Base(p)
	a := guest.FileAnswer{Info: &i}
	if st.IsDir() {
		if err := answer(out, a); err != nil {
			return err
		}
		return pack(p, out)
	}
	a.Offset = o.Offset
	if a.Offset < 0 {
		a.Offset = max(0, st.Size()+a.Offset)
	}
	if a.Offset > st.Size() {
		return answer(out, failed(refuse(guest.FileInvalid, "offset %d is behind the end at %d", a.Offset, st.Size())))
	}
	a.Length = st.Size() - a.Offset
	if o.Length > 0 {
		a.Length = min(a.Length, o.Length)
	}
	if a.Length > guest.MaxFileBytes { // a sparse file costs its owner nothing
		return answer(out, failed(refuse(guest.FileTooLarge, "%d bytes are more than the %d that are sent at a time", a.Length, int64(guest.MaxFileBytes))))
	}
	if err := answer(out, a); err != nil {
		return err
	}
	// A file that shrinks meanwhile is an error: the length was promised.
	_, err = io.CopyN(out, io.NewSectionReader(f, a.Offset, a.Length), a.Length)
	return err
}

// write replaces the file as a whole: the data goes to another name in the same
// folder, which is held open, so that no swapped link leads it elsewhere and no
// reader sees half of it. What the data is is not seen before it is complete.
func write(p string, mode os.FileMode, data io.Reader) (guest.FileAnswer, error) {
	dir, name := filepath.Split(p)
	if name == "" || name == "." || name == ".." {
		return guest.FileAnswer{}, refuse(guest.FileInvalid, "%s does not name a file", p)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return guest.FileAnswer{}, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return guest.FileAnswer{}, err
	}
	defer root.Close()
	return writeIn(root, name, mode, data)
}

// writeIn is write within an open folder. A link at name is replaced, never followed.
func writeIn(root *os.Root, name string, mode os.FileMode, data io.Reader) (guest.FileAnswer, error) {
	st, err := root.Lstat(name)
	switch {
	case err == nil && st.IsDir():
		return guest.FileAnswer{}, refuse(guest.FileInvalid, "%s is a folder", name)
	case err == nil && mode == 0 && st.Mode().IsRegular():
		mode = st.Mode().Perm()
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return guest.FileAnswer{}, err
	}
	if mode == 0 {
		mode = 0o644
	}
	temp := filepath.Join(filepath.Dir(name), fmt.Sprintf(".podspawn-%d-%x.tmp", os.Getpid(), randomBytes()))
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return guest.FileAnswer{}, err
	}
	n, err := io.Copy(f, io.LimitReader(data, guest.MaxFileBytes+1))
	if err == nil && n > guest.MaxFileBytes {
		err = refuse(guest.FileTooLarge, "more than %d bytes", int64(guest.MaxFileBytes))
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = refuse(guest.FileFailed, "the data broke off: nothing was written")
	}
	if err == nil {
		err = f.Chmod(mode) // behind the umask, and before the file has its name
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = root.Rename(temp, name)
	}
	if err != nil {
		_ = root.Remove(temp) // the first error is the one to report
		return guest.FileAnswer{}, err
	}
	i := guest.FileInfo{Name: filepath.Base(name), Kind: guest.KindFile, Size: n, Mode: uint32(mode)}
	if st, err := root.Lstat(name); err == nil {
		i = info(st, "")
	}
	return guest.FileAnswer{Info: &i, Length: n, Count: 1}, nil
}

func remove(p string, recursive bool) (guest.FileAnswer, error) {
	dir, name := filepath.Split(strings.TrimRight(p, "/"))
	if name == "" || name == "." || name == ".." {
		return guest.FileAnswer{}, refuse(guest.FileInvalid, "%s does not name a file", p)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return guest.FileAnswer{}, err
	}
	defer root.Close()
	st, err := root.Lstat(name)
	if err != nil {
		return guest.FileAnswer{}, err
	}
	if recursive {
		err = root.RemoveAll(name)
	} else {
		err = root.Remove(name)
	}
	if errors.Is(err, unix.ENOTEMPTY) {
		return guest.FileAnswer{}, refuse(guest.FileInvalid, "%s is not empty", p)
	}
	if err != nil {
		return guest.FileAnswer{}, err
	}
	i := info(st, "")
	return guest.FileAnswer{Info: &i, Count: 1}, nil
}
