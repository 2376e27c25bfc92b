package install

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
)

// Uninstall takes back what Apply did: our drop-in, our lines in files that
// others may have edited since, and the users that Apply made. It leaves every
// other line alone, and keeps CA keys and backups unless o.Purge. It is
// idempotent. A failure before sshd was told is rolled back.
func Uninstall(ctx context.Context, o Options) (Result, error) {
	if os.Geteuid() != 0 {
		return Result{}, refuse("set-up needs root", "run it with sudo")
	}
	path, err := findSSHD()
	if err != nil {
		return Result{}, err
	}
	m, err := LoadManifest(ManifestPath)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		m = &Manifest{Config: o.config()}
	case err != nil:
		return Result{}, err
	}
	p := &plan{sshd: sshd{path, m.Config}, manifest: m}
	if err := p.planRemoval(ctx, o); err != nil {
		return Result{}, err
	}
	if o.DryRun {
		return p.show(o), nil
	}
	unlock, err := lock()
	if err != nil {
		return Result{}, err
	}
	defer unlock()
	r, err := p.remove(ctx, o)
	if err != nil {
		return r, err
	}
	p.cleanUp(o)
	if !r.Changed {
		o.say("nothing to change")
	}
	return r, nil
}

// planRemoval is planFiles backwards: sshd lets nobody in first.
func (p *plan) planRemoval(ctx context.Context, o Options) error {
	for _, f := range []struct {
		path   string
		remove bool
		after  func(string) string
	}{
		{dropInPath(p.sshd.config), true, nil},
		{pamPath, false, removePAM},
		{nssPath, false, func(s string) string { return removeNSS(s, p.manifest.NSS) }},
		{extraGroup, false, removeGroups},
		{ManifestPath, true, nil},
	} {
		text, exists, err := readOptional(f.path)
		if err != nil {
			return err
		}
		if !exists || f.remove && f.path != ManifestPath && !strings.HasPrefix(text, dropInHeader) {
			continue
		}
		e := edit{path: f.path, before: text, exists: true, remove: f.remove}
		what := "remove " + f.path
		if f.after != nil {
			e.after = f.after(text)
			what = "edit " + f.path
		}
		if !e.none() {
			p.changes = append(p.changes, editChange(what, e))
		}
	}
	for _, name := range p.manifest.Users {
		p.changes = append(p.changes, change{what: "remove the system user " + name, do: func() (func() error, error) {
			if err := run(ctx, "userdel", name); err != nil {
				o.say("%s stays: %v", name, err) // it still runs something; harmless
			}
			return nil, nil
		}})
	}
	return nil
}

func (p *plan) remove(ctx context.Context, o Options) (r Result, err error) {
	var undo undoStack
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.run())
			r = Result{}
			o.say("rolled back")
		}
	}()
	for _, c := range p.changes {
		back, err := c.do()
		undo.push(back)
		if err != nil {
			return r, err
		}
		r.Steps = append(r.Steps, c.what)
		o.say("%s", c.what)
	}
	r.Changed = len(p.changes) > 0
	if !r.Changed {
		return r, nil
	}
	flushNameCache(ctx)
	if err := p.sshd.check(ctx); err != nil {
		// Not our doing, and putting our lines back would not cure it.
		o.say("%v; it is not reloaded", err)
		return r, nil
	}
	if !o.NoReload {
		err = p.sshd.reload(ctx, o)
	}
	return r, err
}

// cleanUp removes what is ours alone. What still holds something stays.
func (p *plan) cleanUp(o Options) {
	if o.Purge {
		for _, path := range []string{"/etc/podspawn/ssh", "/var/lib/podspawn/keys", backupDir} {
			if err := os.RemoveAll(path); err != nil {
				o.say("%s stays: %v", path, err)
			}
		}
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		if dirs[i].ours && dirs[i].path != backupDir {
			_ = os.Remove(dirs[i].path) // not empty: it stays
		}
	}
}
