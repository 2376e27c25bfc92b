package daemon

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/fault"
)

// killAfter is how long an sshd has to end after TERM before it is killed.
const killAfter = 500 * time.Millisecond

// Sessions watches and ends SSH connections. A connection lives as long as its
// sshd monitor, the process that PAM's session step ran under: that is liveness
// by the kernel's word, also over a restart of the daemon, and not a count that
// can leak. It implements sandbox.Sessions and is safe for concurrent use.
//
// A connection ends by exit or by loss. sshd behaves the same in both cases, down
// to its exit status and PAM's close_session, so the channels tell: a connection
// that has ended was left by exit when no channel was open any more and the last
// one's command had ended by itself, as its hook said. Everything else is a loss:
// a client that vanished or was cut off, a killed hook or sshd, a connection that
// never had a channel (ssh -N), and whatever we can't know.
type Sessions struct {
	store sandbox.Store
	kick  func() // after a connection closed
	log   *slog.Logger

	mu       sync.Mutex // guards what follows
	watching map[string]context.CancelFunc
	channels map[sandbox.ID]int       // open channels
	conns    map[string]*channels     // of the connections that had one, by their id
	notes    map[string]string        // why we ended a connection, by its id
	refused  map[sandbox.Process]bool // monitors of connections that are hearing why they are refused
	closing  chan struct{}
	wg       sync.WaitGroup
}

var _ sandbox.Sessions = (*Sessions)(nil)

// NewSessions returns a Sessions. kick is called after a connection closed.
func NewSessions(store sandbox.Store, kick func(), log *slog.Logger) *Sessions {
	return &Sessions{
		store: store, kick: kick, log: log,
		watching: map[string]context.CancelFunc{}, channels: map[sandbox.ID]int{},
		conns: map[string]*channels{}, notes: map[string]string{},
		refused: map[sandbox.Process]bool{}, closing: make(chan struct{}),
	}
}

// Resume watches the connections that an earlier daemon left open, closes those
// that ended meanwhile, and ends those that it had not let in.
func (s *Sessions) Resume(ctx context.Context) error {
	conns, err := s.store.OpenConnections(ctx, "")
	if err != nil {
		return err
	}
	for _, c := range conns {
		row, err := s.rowOf(ctx, c)
		if err != nil {
			return err
		}
		s.Watch(row, c)
	}
	rows, err := s.store.List(ctx, sandbox.Filter{Living: true, Limit: sandbox.MaxList})
	if err != nil {
		return err
	}
	var errs []error
	for _, row := range rows {
		errs = append(errs, s.sweep(ctx, row, ""))
	}
	users, err := s.store.Users(ctx)
	for _, u := range users {
		errs = append(errs, s.sweep(ctx, sandbox.Sandbox{UID: u.UID}, ""))
	}
	return errors.Join(append(errs, err)...)
}

// EndRefused ends a connection that no claim was made for, after it had time to
// say why.
func (s *Sessions) EndRefused(row sandbox.Sandbox, monitor sandbox.Process, after time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused[monitor] = true
	s.wg.Go(func() {
		t := time.NewTimer(after)
		defer t.Stop()
		select {
		case <-t.C:
		case <-s.closing: // now, or nobody will
		}
		s.mu.Lock()
		delete(s.refused, monitor)
		s.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(endMonitor(ctx, monitor), s.sweep(ctx, row, "")); err != nil {
			s.log.Error("refused connection not ended", "sandbox", row.ID, "err", err)
		}
	})
}

// Watch closes the connection in the state when its monitor ends.
func (s *Sessions) Watch(row sandbox.Sandbox, c sandbox.Connection) {
	ctx, cancel := context.WithCancel(context.Background())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watching[c.ID] != nil {
		cancel()
		return
	}
	s.watching[c.ID] = cancel
	s.wg.Go(func() {
		defer cancel()
		// A full disk or an exhausted table of descriptors passes; a connection that
		// is never closed in the state would keep its sandbox alive.
		s.insist(ctx, row, c, "connection not watched", func() error { return waitProcess(ctx, c.Monitor) })
		if ctx.Err() == nil {
			s.closed(ctx, row, c)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watching, c.ID)
		delete(s.notes, c.ID)
		delete(s.conns, c.ID)
	})
}

// Why a connection closed, in the state and the audit log.
const (
	noteExit    = "exit"
	noteLost    = "lost"
	noteRevoked = "revoked"
)

// retryAfter is how long a failed step of watching a connection waits.
const retryAfter = time.Second

// insist does a step until it succeeds or ctx ends.
func (s *Sessions) insist(ctx context.Context, row sandbox.Sandbox, c sandbox.Connection, failed string, step func() error) {
	for {
		err := step()
		if err == nil || ctx.Err() != nil {
			return
		}
		s.log.Error(failed, "sandbox", row.ID, "connection", c.ID, "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryAfter):
		}
	}
}

// closed kills what a connection left, since sshd's user process goes on serving
// the client when only the monitor was killed, and records the end.
func (s *Sessions) closed(ctx context.Context, row sandbox.Sandbox, c sandbox.Connection) {
	row, c = s.present(ctx, row, c)
	s.insist(ctx, row, c, "processes of an ended connection not killed", func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		return s.sweep(ctx, row, c.ID)
	})
	note := s.howItEnded(c.ID)
	fault.At("daemon.session.ended")
	now := time.Now()
	ev := sessionEvent(sandbox.EventSessionClosed, now, row, c)
	ev.Reason = note
	ev.Detail = map[string]string{"seconds": strconv.FormatInt(int64(now.Sub(c.OpenedAt).Seconds()), 10)}
	s.insist(ctx, row, c, "end of a connection not recorded", func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_, err := s.store.CloseConnection(ctx, c.ID, now, note == noteExit, note, ev)
		return err
	})
	fault.At("daemon.session.closed")
	s.kick()
}

// channelsEnd is how long the leases of a connection's channels may take to be
// seen closed once all its processes are dead.
const channelsEnd = 2 * time.Second

// howItEnded says why a connection whose processes are gone has closed, and
// forgets what is known of it.
func (s *Sessions) howItEnded(id string) string {
	s.mu.Lock()
	ch := s.conns[id]
	s.mu.Unlock()
	if ch != nil {
		// A hook's last word may still be on its way.
		t := time.NewTimer(channelsEnd)
		select {
		case <-ch.none():
		case <-t.C:
		}
		t.Stop()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	note := s.notes[id]
	delete(s.notes, id)
	delete(s.conns, id)
	switch {
	case note != "":
		return note
	case ch != nil && ch.finished():
		return noteExit
	default:
		return noteLost
	}
}

// channels are those of one connection. Safe for concurrent use.
type channels struct {
	mu      sync.Mutex // guards what follows
	open    int
	last    bool          // the last to end did so by itself
	waiting chan struct{} // closed when open becomes 0; nil while nobody waits
}

func (c *channels) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open++
	c.last = false
}

func (c *channels) end(finished bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	c.last = finished
	if c.open == 0 && c.waiting != nil {
		close(c.waiting)
		c.waiting = nil
	}
}

// none returns a channel that is closed when no channel is open.
func (c *channels) none() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting == nil {
		c.waiting = make(chan struct{})
	}
	w := c.waiting
	if c.open == 0 {
		close(c.waiting)
		c.waiting = nil
	}
	return w
}

func (c *channels) finished() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open == 0 && c.last
}

// sweep kills the sandbox's processes on the host that belong to no open
// connection other than without, nor to one that is hearing why it is refused.
//
// The processes are listed first, and the connections after: sshd starts a
// process of the uid only once the claim of its connection is in the state. The
// other way round, one that began in between would be taken for a stray.
func (s *Sessions) sweep(ctx context.Context, row sandbox.Sandbox, without string) error {
	procs, err := processesOf(row.UID, false)
	if err != nil {
		return err
	}
	conns, err := s.sharing(ctx, row)
	if err != nil {
		return err
	}
	s.mu.Lock()
	keep := maps.Clone(s.refused)
	s.mu.Unlock()
	for _, c := range conns {
		if c.ID != without {
			keep[c.Monitor] = true
		}
	}
	return killStrays(procs, keep)
}

// killStrays kills those processes that have none of keep among their ancestors.
func killStrays(procs []sandbox.Process, keep map[sandbox.Process]bool) error {
	var errs []error
	for _, p := range procs {
		up, err := ancestors(p.PID)
		if errors.Is(err, errGone) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		stray := true
		for _, above := range up {
			stray = stray && !keep[above]
		}
		if stray {
			errs = append(errs, signalProcess(p, unix.SIGKILL))
		}
	}
	return errors.Join(errs...)
}

// End ends connections: TERM to the monitor lets sshd close its session in
// order; what is left after killAfter is killed, the user's sshd included.
func (s *Sessions) End(ctx context.Context, row sandbox.Sandbox, conns []sandbox.Connection) error {
	errs := make([]error, len(conns), len(conns)+2)
	var wg sync.WaitGroup
	for i, c := range conns { // together: one that ignores TERM does not delay the others
		wg.Go(func() { errs[i] = endMonitor(ctx, c.Monitor) })
	}
	wg.Wait()
	procs, err := processesOf(row.UID, true)
	keep, kerr := s.others(ctx, row, conns)
	if kerr != nil {
		procs = nil // whose they are is not known
	}
	errs = append(errs, err, kerr, killStrays(procs, keep))
	s.mu.Lock()
	for _, c := range conns {
		if cancel := s.watching[c.ID]; cancel != nil {
			cancel() // Destroy records the end itself
		}
		delete(s.conns, c.ID)
	}
	s.mu.Unlock()
	return errors.Join(errs...)
}

// Cut ends connections of a sandbox that lives on, and returns when none of their
// processes is left. Their end is recorded with the note.
func (s *Sessions) Cut(ctx context.Context, row sandbox.Sandbox, conns []sandbox.Connection, note string) error {
	s.mu.Lock()
	for _, c := range conns {
		if s.watching[c.ID] != nil {
			s.notes[c.ID] = note
		}
	}
	s.mu.Unlock()
	errs := make([]error, len(conns)+1)
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Go(func() { errs[i] = endMonitor(ctx, c.Monitor) })
	}
	wg.Wait()
	errs[len(conns)] = s.sweep(ctx, row, "")
	return errors.Join(errs...)
}

// endMonitor ends one connection's sshd monitor.
func endMonitor(ctx context.Context, p sandbox.Process) error {
	if err := signalProcess(p, unix.SIGTERM); err != nil {
		return err
	}
	tctx, cancel := context.WithTimeout(ctx, killAfter)
	defer cancel()
	if waitProcess(tctx, p) == nil {
		return nil
	}
	if err := signalProcess(p, unix.SIGKILL); err != nil {
		return err
	}
	return waitProcess(ctx, p)
}

// openChannel counts a channel of a sandbox, up to sandbox.MaxChannels, until
// done is called with whether its command ended by itself; the first call counts.
func (s *Sessions) openChannel(id sandbox.ID, conn string) (done func(finished bool), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.channels[id] >= sandbox.MaxChannels {
		return nil, sandbox.Errorf(sandbox.KindQuota, "close some first", "sandbox %s has %d sessions already", id, sandbox.MaxChannels)
	}
	s.channels[id]++
	ch := s.conns[conn]
	if ch == nil {
		ch = &channels{}
		s.conns[conn] = ch
	}
	ch.begin()
	var once sync.Once
	return func(finished bool) {
		once.Do(func() {
			ch.end(finished)
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.channels[id]--; s.channels[id] <= 0 {
				delete(s.channels, id)
			}
		})
	}, nil
}

// Close stops watching; the connections go on. Call it once.
func (s *Sessions) Close() {
	s.mu.Lock()
	for _, cancel := range s.watching {
		cancel()
	}
	close(s.closing)
	s.mu.Unlock()
	s.wg.Wait()
}

func sessionEvent(kind sandbox.EventKind, now time.Time, row sandbox.Sandbox, c sandbox.Connection) sandbox.Event {
	return sandbox.Event{
		Time: now, Event: kind, Tenant: row.Tenant, Sandbox: row.ID, SpecDigest: row.Digest,
		Serial: c.Serial, Source: c.Source, Session: c.ID,
	}
}
