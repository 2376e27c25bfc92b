package agent

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/guest"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// Bounds of commands that outlive their calls. Each keeps up to two rings.
const (
	maxWait      = 50 * time.Second
	keepResult   = 10 * time.Minute
	maxRunning   = 16 // a tenant
	maxKept      = 32 // a tenant
	maxJobs      = 256
	pingInterval = 15 * time.Second
	streamChunk  = 32 << 10
)

// jobs are the commands that outlive their calls. They live in this process, which
// holds their connections to the guest: when it ends, they do. Safe for concurrent use.
type jobs struct {
	ctx  context.Context // ends with the process; jobs must outlive requests
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu     sync.Mutex // guards what follows
	all    map[string]*job
	closed bool
}

func newJobs() *jobs {
	js := &jobs{all: map[string]*job{}}
	js.ctx, js.stop = context.WithCancel(context.Background())
	return js
}

func (js *jobs) close() {
	js.mu.Lock()
	js.closed = true
	for _, j := range js.all {
		if j.forget != nil {
			j.forget.Stop()
		}
	}
	js.mu.Unlock()
	js.stop()
	js.wg.Wait()
}

// job is one command.
type job struct {
	id      string
	sandbox sandbox.Sandbox
	out     *ring
	err     *ring
	in      *inbox
	signals chan string
	resize  chan guest.Window
	kill    context.CancelFunc
	began   time.Time
	done    chan struct{}

	// Valid once done is closed.
	result api.ExecResult // without output
	fail   error

	forget  *time.Timer // guarded by jobs.mu
	destroy bool        // the sandbox, after the result was read
	gone    sync.Once   // the destruction
	by      *as         // who started it

	mu     sync.Mutex // guards signal
	signal chan struct{}
}

// news returns a channel that is closed with the next change.
func (j *job) news() <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.signal
}

func (j *job) changed() {
	j.mu.Lock()
	close(j.signal)
	j.signal = make(chan struct{})
	j.mu.Unlock()
}

// room makes room for one more job of a tenant: the oldest results go first.
func (js *jobs) room(tenant string) error {
	js.mu.Lock()
	defer js.mu.Unlock()
	if js.closed {
		return sandbox.Errorf(sandbox.KindUnavailable, "try again", "the service is stopping")
	}
	var oldest *job
	kept, running := 0, 0
	for _, j := range js.all {
		if j.sandbox.Tenant != tenant {
			continue
		}
		kept++
		select {
		case <-j.done:
			if oldest == nil || j.began.Before(oldest.began) {
				oldest = j
			}
		default:
			running++
		}
	}
	if running >= maxRunning {
		return sandbox.Errorf(sandbox.KindQuota, "poll or signal those that run, or wait", "%d commands run in the background already", running)
	}
	if kept >= maxKept && oldest != nil {
		js.drop(oldest)
	}
	if len(js.all) >= maxJobs {
		return sandbox.Errorf(sandbox.KindCapacity, "try again in a while", "the service keeps %d commands already", len(js.all))
	}
	return nil
}

// drop forgets a job, with mu held.
func (js *jobs) drop(j *job) {
	delete(js.all, j.id)
	if j.forget != nil {
		j.forget.Stop()
	}
	js.wg.Go(func() { j.afterwards(j.by) })
}

// startJob starts a command that this process keeps. attached is as in ring.
func (a *as) startJob(ctx context.Context, ref string, r api.ExecRequest, attached bool) (*job, error) {
	who, err := a.s.WhoAmI(ctx, a.auth)
	if err != nil {
		return nil, err
	}
	js := a.s.jobs
	if err := js.room(who.Tenant); err != nil {
		return nil, err
	}
	timeout := time.Duration(r.Timeout)
	in := localapi.ExecRequest{Sandbox: ref, Command: auditText(r), Wait: min(startWait, timeout), PTY: r.TTY != nil}
	opening, cancel := context.WithTimeout(ctx, in.Wait+callTimeout)
	defer cancel()
	var out localapi.ExecResponse
	lease, err := a.s.daemon.Open(opening, localapi.OpExec, a.auth, in, &out)
	if err != nil {
		return nil, err
	}
	if lease.File == nil {
		lease.Close()
		return nil, errors.New("the daemon sent no connection to the guest")
	}
	j := &job{
		id: out.Exec, sandbox: out.Sandbox, began: time.Now(), done: make(chan struct{}), signal: make(chan struct{}),
		in:      newInbox(r.Stdin, r.StdinOpen || r.TTY != nil || r.Background && r.Stdin == ""),
		signals: make(chan string), resize: make(chan guest.Window), destroy: r.Destroy, by: a,
	}
	j.out, j.err = newRing(attached, j.changed), newRing(attached, j.changed)
	running, kill := context.WithTimeout(js.ctx, timeout)
	j.kill = kill
	js.mu.Lock()
	if js.closed {
		js.mu.Unlock()
		kill()
		lease.Close()
		return nil, sandbox.Errorf(sandbox.KindUnavailable, "try again", "the service is stopping")
	}
	js.all[j.id] = j
	js.wg.Add(1)
	js.mu.Unlock()
	go func() {
		defer js.wg.Done()
		defer lease.Close() // tells the daemon that the command has ended
		defer kill()
		exit, err := guest.Run(running, lease.File, guestExec(r), guest.Streams{
			Stdin: j.in, Stdout: j.out, Stderr: j.err, Signals: j.signals, Resize: j.resize,
		})
		j.in.close()
		j.ended(exit, err, running)
		js.finished(j)
	}()
	return j, nil
}

// ended keeps how the command ended.
func (j *job) ended(exit guest.Exit, err error, running context.Context) {
	j.result = api.ExecResult{
		ExecID: j.id, ExitCode: exit.Code, Signal: exit.Signal, DurationMS: time.Since(j.began).Milliseconds(), ExpiresAt: j.sandbox.ExpiresAt.UTC(),
	}
	j.out.detach()
	j.err.detach()
	switch {
	case err == nil:
		if exit.Error != "" {
			fmt.Fprintf(j.err, "podspawn: error: %s\n", exit.Error)
		}
	case errors.Is(running.Err(), context.DeadlineExceeded):
		j.result.TimedOut, j.result.ExitCode, j.result.Signal = true, exitTimedOut, "KILL"
	case running.Err() != nil: // killed
		j.result.ExitCode, j.result.Signal = 128+9, "KILL"
	case errors.Is(err, guest.ErrEnded):
		j.fail = &sandbox.Error{
			Kind: sandbox.KindGone, Msg: "the sandbox ended while the command ran", Err: err,
			Hint: "get the sandbox to see why; create another one",
		}
	default:
		j.fail = fmt.Errorf("run command: %w", err)
	}
	close(j.done)
	j.changed()
}

// finished keeps the result for a while.
func (js *jobs) finished(j *job) {
	js.mu.Lock()
	defer js.mu.Unlock()
	if js.closed {
		return
	}
	j.forget = time.AfterFunc(keepResult, func() {
		js.mu.Lock()
		closed := js.closed
		if !closed {
			js.wg.Add(1)
		}
		delete(js.all, j.id)
		js.mu.Unlock()
		if !closed {
			defer js.wg.Done()
			j.afterwards(j.by)
		}
	})
}

// wait waits until the command has ended, d has passed or ctx has ended; with data
// also until there is output behind c.
func (j *job) wait(ctx context.Context, d time.Duration, c cursor, data bool) {
	if deadline, ok := ctx.Deadline(); ok { // the answer needs time too
		d = min(d, time.Until(deadline)-time.Second)
	}
	timer := time.NewTimer(max(d, 0))
	defer timer.Stop()
	for {
		news := j.news()
		if data && (j.out.total() > c.out || j.err.total() > c.err) {
			return
		}
		select {
		case <-j.done:
			return
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		case <-news:
		}
	}
}

// status is the command with what it wrote behind c, at most limit bytes a stream.
func (j *job) status(c cursor, limit int) (api.ExecResult, error) {
	res := api.ExecResult{ExecID: j.id, ExitCode: -1, Running: true, ExpiresAt: j.sandbox.ExpiresAt.UTC(), DurationMS: time.Since(j.began).Milliseconds()}
	select {
	case <-j.done: // looked at before the streams: then they are complete
		if j.fail != nil {
			return api.ExecResult{}, j.fail
		}
		res = j.result
	default:
	}
	if c.out > j.out.total() || c.err > j.err.total() {
		return api.ExecResult{}, sandbox.Errorf(sandbox.KindInvalidSpec, "use the cursor of an earlier answer for this exec_id", "the cursor is ahead of the output")
	}
	next := c
	var lost bool
	res.Stdout, next.out, lost = piece(j.out, c.out, limit)
	res.Truncated = res.Truncated || lost || next.out < j.out.total()
	res.Stderr, next.err, lost = piece(j.err, c.err, limit)
	res.Truncated = res.Truncated || lost || next.err < j.err.total()
	res.Cursor = next.String()
	return res, nil
}

// piece is text from a stream; a character that the end goes through waits for
// its rest.
func piece(r *ring, offset int64, limit int) (text string, next int64, lost bool) {
	b, next, n := r.from(offset, limit)
	for i := 1; i < utf8.UTFMax && i < len(b); i++ {
		if last := b[len(b)-i:]; utf8.RuneStart(last[0]) {
			if !utf8.FullRune(last) && next < r.total() {
				b, next = b[:len(b)-i], next-int64(i)
			}
			break
		}
	}
	text = valid(b)
	if n > 0 {
		head := r.beginning(offset)
		text = fmt.Sprintf("%s\n[podspawn: %d bytes left out]\n%s", head, n-int64(len(head)), text)
	}
	return text, next, n > 0
}

// execJob is Exec for a command that may outlive the call.
func (a *as) execJob(ctx context.Context, ref string, r api.ExecRequest) (api.ExecResult, error) {
	j, err := a.startJob(ctx, ref, r, false)
	if err != nil {
		return api.ExecResult{}, err
	}
	d := time.Duration(0)
	if r.WaitSeconds != nil {
		d = time.Duration(*r.WaitSeconds * float64(time.Second))
	}
	j.wait(ctx, d, cursor{}, false)
	if ctx.Err() != nil && !r.Background && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		j.kill()
		<-j.done
		j.afterwards(a)
		return api.ExecResult{}, fmt.Errorf("command cancelled: %w", context.Cause(ctx))
	}
	return a.answerJob(j, cursor{}, r.MaxOutputBytes)
}

func (a *as) answerJob(j *job, c cursor, limit int) (api.ExecResult, error) {
	res, err := j.status(c, limit)
	if err != nil || !res.Running {
		j.afterwards(a)
	}
	return res, err
}

// afterwards destroys the sandbox when that was asked for, once.
func (j *job) afterwards(by *as) {
	if j.destroy {
		j.gone.Do(func() { by.abandon(by.s.jobs.ctx, j.sandbox.ID) })
	}
}

// job returns a command of the caller's tenant. Another tenant's is not found.
func (a *as) job(ctx context.Context, ref, exec string) (*job, error) {
	who, err := a.s.WhoAmI(ctx, a.auth)
	if err != nil {
		return nil, err
	}
	if !who.Can(sandbox.ScopeRun) {
		return nil, sandbox.Errorf(sandbox.KindInsufficientScope, "use a token created with --scope "+string(sandbox.ScopeRun), "the token lacks the scope %s", sandbox.ScopeRun)
	}
	a.s.jobs.mu.Lock()
	j := a.s.jobs.all[exec]
	a.s.jobs.mu.Unlock()
	if j == nil || j.sandbox.Tenant != who.Tenant || ref != "" && ref != string(j.sandbox.ID) && ref != j.sandbox.Name {
		return nil, sandbox.Errorf(sandbox.KindNotFound,
			"results are kept for 10 minutes after the end, and not over a restart of the service", "there is no command %q", clip(exec))
	}
	return j, nil
}

func (a *as) PollExec(ctx context.Context, ref, exec string, r api.ExecPoll) (api.ExecResult, error) {
	c, err := parseCursor(r.Cursor)
	if err != nil {
		return api.ExecResult{}, err
	}
	if r.Wait < 0 || r.Wait > maxWait || r.MaxOutput < 0 {
		return api.ExecResult{}, sandbox.Errorf(sandbox.KindInvalidSpec, "wait for at most 50 seconds", "wait_seconds or max_output_bytes is out of range")
	}
	if r.MaxOutput == 0 || r.MaxOutput > 2*ringSize {
		r.MaxOutput = 2 * ringSize
	}
	j, err := a.job(ctx, ref, exec)
	if err != nil {
		return api.ExecResult{}, err
	}
	j.wait(ctx, r.Wait, c, r.WaitForData)
	return a.answerJob(j, c, r.MaxOutput)
}

func (a *as) InputExec(ctx context.Context, ref, exec string, r api.ExecInput) (api.ExecAccepted, error) {
	data := []byte(r.Data)
	switch r.Encoding {
	case "", "utf-8":
	case "base64":
		var err error
		if data, err = base64.StdEncoding.DecodeString(r.Data); err != nil {
			return api.ExecAccepted{}, sandbox.Errorf(sandbox.KindInvalidSpec, "use standard base64 with padding", "data is not base64")
		}
	default:
		return api.ExecAccepted{}, sandbox.Errorf(sandbox.KindInvalidSpec, "use utf-8 or base64", "encoding %q is unknown", clip(r.Encoding))
	}
	if r.Rows < 0 || r.Rows > 5000 || r.Cols < 0 || r.Cols > 5000 {
		return api.ExecAccepted{}, sandbox.Errorf(sandbox.KindInvalidSpec, "use the size of a real terminal", "rows or cols is out of range")
	}
	if len(data) == 0 && !r.EOF && r.Rows == 0 {
		return api.ExecAccepted{}, sandbox.Errorf(sandbox.KindInvalidSpec, "give data, eof or rows and cols", "there is nothing to do")
	}
	j, err := a.job(ctx, ref, exec)
	if err != nil {
		return api.ExecAccepted{}, err
	}
	if len(data) > 0 || r.EOF {
		if err := j.in.put(data, r.EOF); err != nil {
			return api.ExecAccepted{}, err
		}
	}
	if r.Rows > 0 && r.Cols > 0 {
		select {
		case j.resize <- window(r.Rows, r.Cols):
		case <-j.done:
		case <-ctx.Done():
		}
	}
	return j.accepted(), nil
}

func (a *as) SignalExec(ctx context.Context, ref, exec string, r api.ExecSignal) (api.ExecAccepted, error) {
	if !signalName(r.Signal) {
		return api.ExecAccepted{}, sandbox.Errorf(sandbox.KindInvalidSpec, "use INT, TERM, KILL, HUP, QUIT, USR1 or USR2", "signal %q is unknown", clip(r.Signal))
	}
	j, err := a.job(ctx, ref, exec)
	if err != nil {
		return api.ExecAccepted{}, err
	}
	select {
	case j.signals <- r.Signal:
	case <-j.done:
	case <-ctx.Done():
		return api.ExecAccepted{}, fmt.Errorf("signal command: %w", context.Cause(ctx))
	}
	return j.accepted(), nil
}

func signalName(s string) bool {
	switch s {
	case "INT", "TERM", "KILL", "HUP", "QUIT", "USR1", "USR2", "STOP", "CONT", "WINCH", "ALRM", "PIPE", "ABRT":
		return true
	}
	return false
}

func (j *job) accepted() api.ExecAccepted {
	ok := api.ExecAccepted{ExecID: j.id, Running: true, ExpiresAt: j.sandbox.ExpiresAt.UTC()}
	select {
	case <-j.done:
		ok.Running = false
	default:
	}
	return ok
}

func window(rows, cols int) guest.Window {
	return guest.Window{Rows: uint16(rows), Cols: uint16(cols)} // bounded by the callers
}

func (a *as) StreamExec(ctx context.Context, ref string, r api.ExecRequest, emit func(api.ExecEvent) error) error {
	if err := checkRef(ref); err != nil {
		return err
	}
	if err := checkExec(&r); err != nil {
		return err
	}
	if r.Background || r.WaitSeconds != nil {
		return sandbox.Errorf(sandbox.KindInvalidSpec, "leave them out", "background and wait_seconds have no meaning for a stream")
	}
	j, err := a.startJob(ctx, ref, r, true)
	if err != nil {
		return err
	}
	defer func() {
		j.kill()
		j.out.detach()
		j.err.detach()
		<-j.done
	}()
	if err := emit(api.ExecEvent{Kind: "started", ExecID: j.id}); err != nil {
		return err
	}
	ping := time.NewTicker(pingInterval)
	defer ping.Stop()
	var c cursor
	for {
		news := j.news()
		over := false
		select {
		case <-j.done:
			over = true
		default:
		}
		moved := false
		for _, s := range []struct {
			kind string
			ring *ring
			at   *int64
		}{{"stdout", j.out, &c.out}, {"stderr", j.err, &c.err}} {
			b, next, _ := s.ring.from(*s.at, streamChunk)
			if len(b) > 0 {
				if err := emit(api.ExecEvent{Kind: s.kind, Data: b}); err != nil {
					return err
				}
				*s.at, moved = next, true
			}
		}
		switch {
		case moved:
			continue
		case over && j.fail != nil:
			return j.fail
		case over:
			res := j.result
			return emit(api.ExecEvent{Kind: "exit", Result: &res})
		}
		select {
		case <-news:
		case <-j.done:
		case <-ping.C:
			if err := emit(api.ExecEvent{Kind: "ping"}); err != nil {
				return err
			}
		case <-ctx.Done():
			return fmt.Errorf("command cancelled: %w", context.Cause(ctx))
		}
	}
}
