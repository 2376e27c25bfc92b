package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/daemon"
	"github.com/podspawn/podspawn/sandbox/sqlstore"
)

type restoreResult struct {
	CreatedAt time.Time `json:"created_at"`
	Files     []string  `json:"files"`
	Kept      string    `json:"kept,omitempty"` // where what was replaced is
}

func newRestoreCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "restore FILE|-", Short: "put a backup back", GroupID: groupAdmin, Args: exact("FILE or -"),
		Long: `Puts state, keys and configuration back as podspawn backup wrote them, as root. The
daemon must not run. Where there is a state already it needs --force, and keeps
what it replaces in a folder beside it. All certificates are revoked; sandboxes of
the backup that no longer exist are noted as lost when the daemon starts. Run
podspawn server-setup afterwards.`,
		RunE: func(cmd *cobra.Command, args []string) error { return runRestore(cmd.Context(), a, args[0], force) },
	}
	cmd.Flags().BoolVar(&force, "force", false, "replace the state and keys that are there")
	return cmd
}

func runRestore(ctx context.Context, a *app, src string, force bool) (err error) {
	if os.Geteuid() != 0 {
		return sandbox.Errorf(sandbox.KindPolicy, "run it with sudo", "restore needs root")
	}
	c, err := a.loadConfig(nil)
	if err != nil {
		return err
	}
	unlock, err := daemon.Lock(c.RunDir) // and none starts meanwhile
	if err != nil {
		return err
	}
	defer unlock()
	places := a.places(c)
	there, err := existing(places)
	if err != nil {
		return err
	}
	if there != "" && !force {
		return withHint(fmt.Errorf("%s is there already", there), "look whether you need it; --force replaces it and keeps a copy")
	}
	r := a.stdin
	if src != "-" {
		f, err := os.Open(src)
		if err != nil {
			return err
		}
		defer f.Close()
		r = f
	}
	if err := os.MkdirAll(c.StateDir, 0o711); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(c.StateDir, ".restore-") // mode 0700
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	head, members, err := unpack(r, dir)
	if err != nil {
		return err
	}
	// Opened before anything is replaced: what cannot be read, or is of a newer
	// version, is refused while the old one is still in place.
	if err := closeRestored(ctx, filepath.Join(dir, backupState), head); err != nil {
		return err
	}
	res := restoreResult{CreatedAt: head.CreatedAt}
	if there != "" {
		if res.Kept, err = setAside(c.StateDir, places); err != nil {
			return err
		}
	}
	if err := place(dir, members, places, &res); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(res)
	}
	a.say("restored the backup of %s; now run podspawn server-setup, then start the daemon", head.CreatedAt.Format(time.RFC3339))
	if res.Kept != "" {
		a.say("what was there before is in %s", res.Kept)
	}
	_, err = fmt.Fprintln(a.stdout, strings.Join(res.Files, "\n"))
	return err
}

// existing returns the first part of a state that there is, "" for none.
func existing(places map[string]string) (string, error) {
	if _, err := os.Lstat(places[backupState]); err == nil || !errors.Is(err, os.ErrNotExist) {
		return places[backupState], err
	}
	entries, err := os.ReadDir(places["keys"])
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if len(entries) > 0 {
		return filepath.Join(places["keys"], entries[0].Name()), nil
	}
	return "", nil
}

func closeRestored(ctx context.Context, path string, head backupHeader) error {
	store, err := sqlstore.Open(ctx, path)
	if err != nil {
		return err
	}
	now := time.Now()
	err = store.Restored(ctx, now, sandbox.Event{
		Time: now, Event: sandbox.EventSetupChanged, Subject: "root", Actor: sandbox.ActorAdmin, Reason: "restored",
		Detail: map[string]string{"backup_of": head.CreatedAt.UTC().Format(time.RFC3339)},
	})
	return errors.Join(err, store.Close())
}

// setAside moves state and keys into a folder of their own.
func setAside(stateDir string, places map[string]string) (string, error) {
	kept, err := os.MkdirTemp(stateDir, "replaced-"+time.Now().UTC().Format("20060102T150405")+"-")
	if err != nil {
		return "", err
	}
	for _, path := range []string{places[backupState], places[backupState] + "-wal", places[backupState] + "-shm", places["keys"]} {
		err := os.Rename(path, filepath.Join(kept, filepath.Base(path)))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
	}
	return kept, nil
}

// place moves the unpacked files to where they belong, the state last: without it
// the daemon begins a new one only when somebody starts it, and restore can be
// run again.
func place(dir string, members []member, places map[string]string, res *restoreResult) error {
	state := []member{}
	for _, m := range members {
		if m.name == backupState {
			state = append(state, m)
			continue
		}
		if err := placeOne(dir, m, places, res); err != nil {
			return err
		}
	}
	for _, m := range state {
		if err := placeOne(dir, m, places, res); err != nil {
			return err
		}
	}
	return nil
}

func placeOne(dir string, m member, places map[string]string, res *restoreResult) error {
	dst, folderMode := places[m.name], os.FileMode(0o755)
	if folder, file, ok := strings.Cut(m.name, "/"); ok {
		dst = filepath.Join(places[folder], file)
		if folder == "keys" {
			folderMode = 0o700
			m.mode &= 0o600
		}
	}
	if m.name == backupState {
		m.mode, folderMode = 0o600, 0o711
	}
	if err := os.MkdirAll(filepath.Dir(dst), folderMode); err != nil {
		return err
	}
	src, err := os.Open(filepath.Join(dir, filepath.FromSlash(m.name)))
	if err != nil {
		return err
	}
	defer src.Close()
	// A copy, since the configuration may be on another file system.
	tmp, err := os.CreateTemp(filepath.Dir(dst), ".restore-*")
	if err != nil {
		return err
	}
	_, err = io.Copy(tmp, src)
	err = errors.Join(err, tmp.Chmod(m.mode), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), dst)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	res.Files = append(res.Files, dst)
	return nil
}
