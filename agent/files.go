package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/guest"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// fileTime bounds one operation on files, however much it moves.
const fileTime = time.Hour

// transfer is one operation on files that is under way in a sandbox.
type transfer struct {
	sandbox sandbox.Sandbox
	answer  guest.FileAnswer
	out     *bufio.Reader
	pipe    *io.PipeReader
	cancel  context.CancelFunc
	done    chan struct{} // the process has ended
}

// file starts op in the sandbox. data is nil when it reads none. The caller
// closes the transfer, which ends the process.
func (a *as) file(ctx context.Context, ref string, op guest.FileOp, data io.Reader) (*transfer, error) {
	if err := checkRef(ref); err != nil {
		return nil, err
	}
	if err := op.Check(); err != nil {
		return nil, sandbox.Errorf(sandbox.KindInvalidSpec, "use a path of the sandbox, such as /workspace/notes.txt", "path: %v", err)
	}
	in := localapi.ExecRequest{
		Sandbox: ref, Wait: startWait, Files: &localapi.FilesRequest{Write: op.Op.Writes(), Path: op.Path},
	}
	opening, cancelOpening := context.WithTimeout(ctx, in.Wait+callTimeout)
	defer cancelOpening()
	var out localapi.ExecResponse
	lease, err := a.s.daemon.Open(opening, localapi.OpExec, a.auth, in, &out)
	if err != nil {
		return nil, err
	}
	if lease.File == nil {
		lease.Close()
		return nil, errors.New("the daemon sent no connection to the guest")
	}
	running, cancel := context.WithTimeout(ctx, fileTime)
	r, w := io.Pipe()
	t := &transfer{sandbox: out.Sandbox, out: bufio.NewReaderSize(r, 64<<10), pipe: r, cancel: cancel, done: make(chan struct{})}
	streams := guest.Streams{Stdout: w}
	if data != nil {
		streams.Stdin = guest.ChunkReader(data)
	}
	go func() {
		defer close(t.done)
		defer lease.Close()
		exit, err := guest.Run(running, lease.File, guest.Exec{File: &op}, streams)
		_ = w.CloseWithError(transferEnd(ctx, running, exit, err)) // never fails
	}()
	if t.answer, err = guest.ReadFileAnswer(t.out); err != nil {
		t.close()
		return nil, gone(err)
	}
	if t.answer.Error != "" {
		t.close()
		return nil, fileError(t.answer)
	}
	return t, nil
}

// transferEnd is what a reader gets behind the last byte.
func transferEnd(ctx, running context.Context, exit guest.Exit, err error) error {
	switch {
	case err == nil && exit.Error != "":
		return sandbox.Errorf(sandbox.KindUnavailable, "destroy the sandbox and create another", "the sandbox can't do that: %s", exit.Error)
	case err == nil && exit.Code != 0:
		return io.ErrUnexpectedEOF
	case err == nil:
		return io.EOF
	case ctx.Err() == nil && running.Err() != nil:
		return sandbox.Errorf(sandbox.KindTimeout, "move less at a time", "the transfer took longer than %s", fileTime)
	case errors.Is(err, guest.ErrEnded):
		return &sandbox.Error{
			Kind: sandbox.KindGone, Msg: "the sandbox ended during the transfer", Err: err,
			Hint: "get the sandbox to see why; create another one",
		}
	}
	return err
}

// gone gives an answer that never came a meaning.
func gone(err error) error {
	if _, ok := errors.AsType[*sandbox.Error](err); ok {
		return err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return &sandbox.Error{
			Kind: sandbox.KindUnavailable, Msg: "the sandbox did not finish the operation", Err: err,
			Hint: "it may have run out of memory or processes; try again",
		}
	}
	return err
}

// close ends the operation and waits for its end.
func (t *transfer) close() {
	t.cancel()
	_ = t.pipe.CloseWithError(errors.New("closed")) // never fails
	<-t.done
}

// fileError is a refusal of the sandbox's own kernel, or of the guest.
func fileError(a guest.FileAnswer) error {
	e := func(k sandbox.Kind, hint string) error { return sandbox.Errorf(k, hint, "%s", a.Message) }
	switch a.Error {
	case guest.FileNotFound:
		return e(sandbox.KindNotFound, "list the folder to see what is there; relative paths start in the workspace")
	case guest.FileDenied:
		return e(sandbox.KindPolicy, "the sandbox's user may not do that; run a command with sudo instead")
	case guest.FileTooLarge:
		return e(sandbox.KindInvalidSpec, "move it in parts, or over ssh with rsync")
	case guest.FileNoSpace:
		return e(sandbox.KindCapacity, "delete something, or create a sandbox with a larger disk")
	case guest.FileInvalid:
		return e(sandbox.KindInvalidSpec, "list the folder to see what is there")
	default:
		return e(sandbox.KindConflict, "look at the folder and try again")
	}
}

func (a *as) OpenFile(ctx context.Context, ref string, r api.FileRange) (api.FileContent, error) {
	if r.Length < 0 {
		return api.FileContent{}, sandbox.Errorf(sandbox.KindInvalidSpec, "leave it out for all the rest", "the length is negative")
	}
	t, err := a.file(ctx, ref, guest.FileOp{Op: guest.OpRead, Path: r.Path, Offset: r.Offset, Length: r.Length}, nil)
	if err != nil {
		return api.FileContent{}, err
	}
	if t.answer.Info == nil {
		t.close()
		return api.FileContent{}, errors.New("the guest answered a read without a file")
	}
	c := api.FileContent{Info: fileInfo(*t.answer.Info), Offset: t.answer.Offset, Length: t.answer.Length, ExpiresAt: t.sandbox.ExpiresAt.UTC()}
	if t.answer.Info.Kind == guest.KindDir {
		c.Offset, c.Length = 0, -1
	}
	left := c.Length
	if left < 0 {
		left = guest.MaxFileBytes + guest.MaxFileBytes/4 // an archive's own bytes
	}
	c.Body = &fileBody{t: t, left: left, exact: c.Length >= 0}
	return c, nil
}

// fileBody is what a sandbox sends, bounded by what it said.
type fileBody struct {
	t     *transfer
	left  int64
	exact bool
}

func (b *fileBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		if b.exact {
			return 0, io.EOF
		}
		return 0, sandbox.Errorf(sandbox.KindInvalidSpec, "move it in parts", "the archive is too large")
	}
	n, err := b.t.out.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if err == io.EOF && b.exact && b.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (b *fileBody) Close() error {
	b.t.close()
	return nil
}

func (a *as) WriteFile(ctx context.Context, ref string, r api.FileWrite) (api.FileWritten, error) {
	op := guest.FileOp{Op: guest.OpWrite, Path: r.Path, Mode: r.Mode}
	if r.Tar {
		op.Op, op.Mode = guest.OpUnpack, 0
	}
	t, err := a.file(ctx, ref, op, r.Body)
	if err != nil {
		return api.FileWritten{}, err
	}
	defer t.close()
	w := api.FileWritten{Path: r.Path, Size: t.answer.Length, Entries: t.answer.Count, ExpiresAt: t.sandbox.ExpiresAt.UTC()}
	if t.answer.Info != nil {
		w.Mode = fileInfo(*t.answer.Info).Mode
	}
	return w, nil
}

func (a *as) ListFiles(ctx context.Context, ref, path string) (api.FileList, error) {
	t, err := a.file(ctx, ref, guest.FileOp{Op: guest.OpList, Path: path}, nil)
	if err != nil {
		return api.FileList{}, err
	}
	defer t.close()
	l := api.FileList{
		Path: path, Entries: make([]api.FileInfo, 0, len(t.answer.Entries)), Truncated: t.answer.Truncated,
		ExpiresAt: t.sandbox.ExpiresAt.UTC(),
	}
	for _, i := range t.answer.Entries {
		l.Entries = append(l.Entries, fileInfo(i))
	}
	return l, nil
}

func (a *as) DeleteFile(ctx context.Context, ref, path string, recursive bool) error {
	t, err := a.file(ctx, ref, guest.FileOp{Op: guest.OpDelete, Path: path, Recursive: recursive}, nil)
	if err != nil {
		return err
	}
	t.close()
	return nil
}

func fileInfo(i guest.FileInfo) api.FileInfo {
	kind := i.Kind
	switch kind {
	case guest.KindFile, guest.KindDir, guest.KindLink:
	default:
		kind = guest.KindOther
	}
	return api.FileInfo{
		Name: i.Name, Type: string(kind), Size: i.Size, Mode: fmt.Sprintf("%04o", i.Mode&0o777),
		Modified: i.Modified.UTC(), Target: i.Target,
	}
}
