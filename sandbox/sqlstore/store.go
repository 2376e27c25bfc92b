package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/podspawn/podspawn/sandbox"

	"modernc.org/sqlite" // also registers the driver "sqlite"
)

var _ sandbox.Store = (*Store)(nil)

// busyTimeout is how long a transaction waits for another process's.
const busyTimeout = 5 * time.Second

// maxReaders bounds the connections that read beside the one that writes.
const maxReaders = 4

// Store is a sandbox.Store in an SQLite file. Make one with [Open]. The callbacks
// of Update and Issue run inside the write transaction: they must not write to
// the Store. It is safe for concurrent use.
type Store struct {
	path   string
	w      *sql.DB // one connection, immediate transactions
	r      *sql.DB
	notify atomic.Pointer[func()]
	closed atomic.Bool
}

// Open opens the state at path, makes it when there is no file, and brings an
// older schema up to date. A file that is damaged, of another program or of a
// newer version is left as it is, and is an *Error of KindUnavailable. The folder
// must exist.
func Open(ctx context.Context, path string) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	if err := prepareFile(path); err != nil {
		return nil, openError(path, err)
	}
	s := &Store{path: path}
	if s.w, err = sql.Open("sqlite", dsn(path, "_txlock=immediate")); err != nil {
		return nil, openError(path, err)
	}
	s.w.SetMaxOpenConns(1)
	if s.r, err = sql.Open("sqlite", dsn(path, "_pragma=query_only(1)")); err != nil {
		return nil, errors.Join(openError(path, err), s.w.Close())
	}
	s.r.SetMaxOpenConns(maxReaders)
	s.r.SetMaxIdleConns(maxReaders)
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(openError(path, err), s.Close())
	}
	return s, nil
}

// start checks the file before anything is written to it, then migrates.
func (s *Store) start(ctx context.Context) error {
	if err := checkFile(ctx, s.w); err != nil {
		return err
	}
	// WAL is a property of the file and survives; a reader then never blocks the
	// writer. It is set only once the file is known to be ours.
	var mode string
	if err := s.w.QueryRowContext(ctx, "PRAGMA journal_mode = WAL").Scan(&mode); err != nil {
		return fmt.Errorf("switch to a write-ahead log: %w", err)
	}
	if mode != "wal" {
		return fmt.Errorf("the file system does not support a write-ahead log (journal mode is %s)", mode)
	}
	return migrate(ctx, s.w)
}

// dsn returns the data source of both handles. synchronous=FULL makes a commit
// durable before it returns: a claim that a power cut takes back would be a
// certificate that works twice.
func dsn(path, extra string) string {
	u := url.URL{Scheme: "file", Path: path}
	return u.String() + fmt.Sprintf("?_pragma=busy_timeout(%d)&_pragma=foreign_keys(1)&_pragma=synchronous(FULL)&_pragma=trusted_schema(0)&",
		busyTimeout.Milliseconds()) + extra
}

// prepareFile makes the file with mode 0600, or sees to it that it has it; SQLite
// gives its log and index the mode of the file. Links are refused: the state is
// exactly where root's configuration says.
func prepareFile(path string) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file", path)
	}
	if st.Mode().Perm() != 0o600 {
		return f.Chmod(0o600)
	}
	return nil
}

// Notify sets a function that is called after every commit that appended events:
// it must not block. Set it before the Store is shared.
func (s *Store) Notify(f func()) { s.notify.Store(&f) }

// Close ends the Store. Transactions that are under way are rolled back or finish.
func (s *Store) Close() error {
	s.closed.Store(true)
	// The writer last: the last connection folds the log into the file.
	return errors.Join(s.r.Close(), s.w.Close())
}

// callerError carries an error of a callback through write unchanged.
type callerError struct{ err error }

func (e callerError) Error() string { return e.err.Error() }

// write runs f in a transaction that has the write lock from its beginning.
func (s *Store) write(ctx context.Context, doing string, f func(tx *tx) error) error {
	t, err := s.w.BeginTx(ctx, nil)
	if err != nil {
		return s.fail(doing, err)
	}
	defer t.Rollback() //nolint:errcheck // after Commit it does nothing; otherwise f's error is the one to return
	x := &tx{Tx: t, ctx: ctx}
	if err := f(x); err != nil {
		if ce, ok := errors.AsType[callerError](err); ok {
			return ce.err
		}
		return s.fail(doing, err)
	}
	if err := t.Commit(); err != nil {
		return s.fail(doing, err)
	}
	if f := s.notify.Load(); x.appended && f != nil {
		(*f)()
	}
	return nil
}

// fail makes the error of a method of what came out of the database.
func (s *Store) fail(doing string, err error) error {
	if s.closed.Load() {
		err = errors.Join(errClosed, err)
	}
	return storeError(s.path, doing, err)
}

// tx is one transaction. It lives no longer than the call that its ctx came from.
type tx struct {
	*sql.Tx
	ctx      context.Context
	appended bool
}

func (t *tx) exec(query string, args ...any) (changed int64, err error) {
	res, err := t.ExecContext(t.ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func (t *tx) row(query string, args ...any) *sql.Row { return t.QueryRowContext(t.ctx, query, args...) }

// sqliteCode returns the extended result code in err, or 0.
func sqliteCode(err error) int {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code()
	}
	return 0
}
