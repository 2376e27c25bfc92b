package main

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/sqlstore"
)

type backupResult struct {
	File  string `json:"file"`
	Bytes int64  `json:"bytes"`
}

func newBackupCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "backup FILE|-", Short: "write state, keys and configuration into one file", GroupID: groupAdmin, Args: exact("FILE or -"),
		Long: `Writes the state, the CA and token keys, the configuration and what server-setup
noted into one tar of mode 0600, as root. The service may be running: the state is
of one moment. The file holds private keys: keep it as you keep those. Sandboxes
themselves and the audit log are not in it.`,
		RunE: func(cmd *cobra.Command, args []string) error { return runBackup(cmd.Context(), a, args[0]) },
	}
}

func runBackup(ctx context.Context, a *app, dst string) (err error) {
	if os.Geteuid() != 0 {
		return sandbox.Errorf(sandbox.KindPolicy, "run it with sudo", "a backup needs root: it has the private keys")
	}
	c, err := a.loadConfig(nil)
	if err != nil {
		return err
	}
	if dst == "-" {
		if isTerminal(a.stdout) {
			return &usageError{msg: "a backup on a terminal is of no use", hint: "redirect it, or name a file"}
		}
		_, err := writeBackup(ctx, a, c, a.stdout)
		return err
	}
	// Beside its destination first: a file of that name is always a whole backup.
	f, err := os.CreateTemp(filepath.Dir(dst), ".podspawn-backup-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	n, err := writeBackup(ctx, a, c, f)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), dst); err != nil {
		return withHint(fmt.Errorf("%s: %w", dst, errors.Unwrap(err)), "name a file that does not exist: a backup overwrites nothing")
	}
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(backupResult{File: dst, Bytes: n})
	}
	_, err = fmt.Fprintln(a.stdout, dst)
	return err
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

func writeBackup(ctx context.Context, a *app, c *config, w io.Writer) (n int64, err error) {
	places := a.places(c)
	if _, err := os.Stat(places[backupState]); err != nil {
		return 0, withHint(fmt.Errorf("there is no state to back up: %w", err), "the daemon makes it when it first starts")
	}
	dir, err := os.MkdirTemp(c.StateDir, ".backup-") // root's disk, mode 0700
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	store, err := sqlstore.Open(ctx, places[backupState])
	if err != nil {
		return 0, err
	}
	state := filepath.Join(dir, backupState)
	if err := errors.Join(store.Backup(ctx, state), store.Close()); err != nil {
		return 0, err
	}
	host, err := os.Hostname()
	if err != nil {
		return 0, err
	}
	info, err := json.Marshal(backupHeader{Version: backupVersion, CreatedAt: time.Now().UTC(), Host: host, Podspawn: version})
	if err != nil {
		return 0, err
	}
	out := &countingWriter{w: w}
	t := tar.NewWriter(out)
	if err := t.WriteHeader(&tar.Header{Name: backupInfo, Mode: 0o600, Size: int64(len(info)), ModTime: time.Now(), Format: tar.FormatPAX}); err != nil {
		return 0, err
	}
	if _, err := t.Write(info); err != nil {
		return 0, err
	}
	for _, m := range []struct{ name, path string }{
		{backupState, state}, {"config.yaml", places["config.yaml"]}, {"setup.json", places["setup.json"]},
	} {
		if err := writeMember(t, m.name, m.path); err != nil {
			return 0, err
		}
	}
	for _, folder := range []string{"keys", "ssh"} {
		entries, err := os.ReadDir(places[folder])
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		for _, e := range entries {
			name := folder + "/" + e.Name()
			if !e.Type().IsRegular() || !backupName.MatchString(name) {
				continue // a temporary file of somebody's
			}
			if err := writeMember(t, name, filepath.Join(places[folder], e.Name())); err != nil {
				return 0, err
			}
		}
	}
	return out.n, t.Close()
}
