package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/podspawn/podspawn/sandbox"

	sqlite3 "modernc.org/sqlite/lib"
)

// storeError makes of err what the contract says: an *Error stays what it is, a
// state that can't be read or written is KindUnavailable, and the end of the
// caller's ctx and everything unexpected is wrapped.
func storeError(path, doing string, err error) error {
	if _, ok := errors.AsType[*sandbox.Error](err); ok {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	if hint, ok := remedy(path, err); ok {
		return &sandbox.Error{
			Kind: sandbox.KindUnavailable, Msg: "the state can't be read or written now",
			Hint: hint, Err: fmt.Errorf("%s: %w", doing, err),
		}
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// openError is storeError for Open, where nothing is expected to fail: whatever
// it is, there is no state.
func openError(path string, err error) error {
	if err := storeError(path, "open state", err); sandbox.KindOf(err) != sandbox.KindInternal {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("open state: %w", err)
	}
	return &sandbox.Error{
		Kind: sandbox.KindUnavailable, Msg: "the state can't be opened",
		Hint: fmt.Sprintf("look at %s and at the daemon's log", path), Err: fmt.Errorf("open state: %w", err),
	}
}

// remedy says what to do when err means that the state can't be used now.
func remedy(path string, err error) (hint string, ok bool) {
	switch sqliteCode(err) & 0xff { // the primary code
	case sqlite3.SQLITE_FULL:
		return fmt.Sprintf("the disk of %s is full: free some space", path), true
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return damagedHint(path), true
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH:
		return fmt.Sprintf("%s or its folder is read-only: check the mount and its permissions", path), true
	case sqlite3.SQLITE_CANTOPEN:
		return fmt.Sprintf("%s can't be opened: check that its folder exists and is writable", path), true
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return fmt.Sprintf("another process holds %s: try again, or find it with fuser", path), true
	case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL:
		return fmt.Sprintf("reading or writing %s failed: check the disk and the kernel's log", path), true
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Sprintf("make the folder of %s: podspawn server-setup does", path), true
	case errors.Is(err, fs.ErrPermission):
		return fmt.Sprintf("%s is for root alone: is this process root?", path), true
	case errors.Is(err, syscall.EROFS):
		return fmt.Sprintf("%s is on a read-only file system: remount it", path), true
	case errors.Is(err, syscall.ELOOP):
		return fmt.Sprintf("%s is a symbolic link: replace it by the file", path), true
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Sprintf("the disk of %s is full: free some space", path), true
	case errors.Is(err, errDamaged):
		return damagedHint(path), true
	case errors.Is(err, errClosed):
		return "the daemon is stopping: try again", true
	}
	return "", false
}

// errDamaged and errClosed are what SQLite and database/sql have no code for.
var (
	errDamaged = errors.New("quick_check found damage")
	errClosed  = errors.New("the state is closed")
)

func damagedHint(path string) string {
	return fmt.Sprintf("%s is damaged and was left as it is: stop the daemon, keep a copy with its -wal and -shm files, "+
		"and restore a backup or move them away to begin anew", path)
}

func notFound(what string) error {
	return sandbox.Errorf(sandbox.KindNotFound, "list what there is with podspawn list", "there is no such %s", what)
}
