package daemon

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/podspawn/podspawn/ephemeralkeys"
	"github.com/podspawn/podspawn/sandbox"
)

// How often the revocation list is looked at, and how long a serial stays on it
// after its certificate expired: clocks may be set back.
const (
	revocationsEvery = time.Second
	revocationsKept  = 10 * time.Minute
)

// Revocations keeps the file of revoked serials that sshd reads, from what the
// state says. The hooks ask the daemon, so the file is the second lock on the same
// door; but while it is missing or broken sshd lets nobody in, so it is put back.
// Safe for concurrent use.
type Revocations struct {
	store sandbox.Store
	path  string
	log   *slog.Logger

	mu      sync.Mutex // guards what follows, and the file
	last    []byte     // the file as it was written; nil before
	serials []uint64   // in it
	version uint64
}

// NewRevocations returns the list at path.
func NewRevocations(store sandbox.Store, path string, log *slog.Logger) *Revocations {
	return &Revocations{store: store, path: path, log: log}
}

// Run keeps the file until ctx ends.
func (r *Revocations) Run(ctx context.Context) {
	t := time.NewTicker(revocationsEvery)
	defer t.Stop()
	for {
		if err := r.Update(ctx, time.Now()); err != nil && ctx.Err() == nil {
			r.log.ErrorContext(ctx, "revocation list not written; sshd may refuse everybody", "path", r.path, "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// Update writes the file when the state has other serials than it, or when it is
// not as it was written. The latter is an alarm, in the log and in the audit log.
func (r *Revocations) Update(ctx context.Context, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	certs, err := r.store.Certificates(ctx, sandbox.CertificateFilter{Revoked: true, ValidAfter: now.Add(-revocationsKept)})
	if err != nil {
		return err
	}
	serials := make([]uint64, 0, len(certs))
	for _, c := range certs {
		serials = append(serials, c.Serial)
	}
	damage := r.damage()
	if damage == "" && r.last != nil && slices.Equal(serials, r.serials) {
		return nil
	}
	r.version = max(r.version+1, uint64(max(now.UnixNano(), 0)))
	list, err := ephemeralkeys.MarshalKRL(ephemeralkeys.KRL{Version: r.version, Generated: now, Comment: "podspawn", Serials: serials})
	if err != nil {
		return err
	}
	if err := ephemeralkeys.WriteFileAtomic(r.path, list, 0o644); err != nil {
		return err
	}
	r.last, r.serials = list, serials
	if damage == "" {
		return nil
	}
	r.log.ErrorContext(ctx, "sshd's revocation list was damaged; nobody could log in; it was written again", "path", r.path, "damage", damage)
	return r.store.Append(ctx, sandbox.Event{
		Time: now, Event: sandbox.EventSetupChanged, Subject: "podspawn", Actor: sandbox.ActorSystem,
		Reason: "the revocation list " + damage + " and was written again", Detail: map[string]string{"file": r.path},
	})
}

// damage says in words what somebody did to the file; "" when it is all right.
func (r *Revocations) damage() string {
	f, err := os.Open(r.path)
	if err != nil {
		return "was missing"
	}
	defer f.Close() // nothing was written
	const most = 64 << 20
	have, err := io.ReadAll(io.LimitReader(f, most))
	switch {
	case err != nil:
		return "could not be read"
	case ephemeralkeys.CheckKRL(have) != nil:
		return "was broken"
	case r.last != nil && !bytes.Equal(have, r.last):
		return "was changed"
	}
	return ""
}
