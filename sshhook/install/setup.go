package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// plan is what Apply would do.
type plan struct {
	sshd     sshd
	changes  []change
	manifest *Manifest
}

// Apply sets the host up. It is idempotent: a second call changes nothing and
// says so. When anything fails, everything but new keys is put back as it was.
// Errors that a person can cure are *sandbox.Error with a hint.
func Apply(ctx context.Context, o Options) (Result, error) {
	p, err := newPlan(ctx, o)
	if err != nil {
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
	return p.apply(ctx, o)
}

// newPlan compares the host with what it should be. It changes nothing.
func newPlan(ctx context.Context, o Options) (*plan, error) {
	path, err := findSSHD()
	if err != nil {
		return nil, err
	}
	// sshd does not even check a configuration without this directory, and in a
	// container nothing makes it before sshd's start script.
	if _, err := os.Stat(privsepDir); errors.Is(err, fs.ErrNotExist) && os.Geteuid() == 0 {
		if err := os.Mkdir(privsepDir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := hostKeys(ctx, o); err != nil {
		return nil, err
	}
	p := &plan{sshd: sshd{path, o.config()}}
	if err := preflight(ctx, p.sshd); err != nil {
		return nil, err
	}
	old, err := LoadManifest(ManifestPath)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if old != nil && old.Config != o.config() {
		return nil, refuse("podspawn is set up for "+old.Config, "run podspawn server-setup --uninstall first")
	}
	p.manifest = &Manifest{Version: manifestVersion, Config: o.config()}
	if old != nil {
		p.manifest.Users, p.manifest.NSS = slices.Clone(old.Users), slices.Clone(old.NSS)
	}
	if p.manifest.Hostnames, err = o.hostnames(); err != nil {
		return nil, err
	}
	if err := errors.Join(p.planDirs(), p.planUsers(ctx), p.planExtraUsers(), p.planKeys(o.now()), p.planFiles()); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *plan) add(c *change) {
	if c != nil {
		p.changes = append(p.changes, *c)
	}
}

func (p *plan) planDirs() error {
	for _, d := range dirs {
		c, err := dirChange(d)
		if err != nil {
			return err
		}
		p.add(c)
	}
	return nil
}

func (p *plan) planUsers(ctx context.Context) error {
	for _, name := range []string{authUser, apiUser, dnsUser} {
		c, err := userChange(ctx, name)
		if err != nil {
			return err
		}
		if c != nil {
			p.manifest.Users = append(p.manifest.Users, name)
		}
		p.add(c)
	}
	return nil
}

// planExtraUsers makes the database of sandbox logins; its entries are the daemon's.
func (p *plan) planExtraUsers() error {
	for _, f := range []struct {
		path string
		mode os.FileMode
	}{{extraPasswd, 0o644}, {extraGroup, 0o644}, {extraShadow, 0o600}} {
		text, exists, err := readOptional(f.path)
		if err != nil {
			return err
		}
		after := text
		if f.path == extraGroup {
			if after, err = insertGroups(text, f.path); err != nil {
				return err
			}
		}
		e := edit{path: f.path, before: text, exists: exists, after: after, mode: f.mode}
		if !e.none() {
			p.changes = append(p.changes, editChange("edit "+f.path, e))
		}
	}
	return nil
}

func (p *plan) planKeys(now time.Time) error {
	why, err := keyProblem(p.manifest.Hostnames, now)
	if err != nil || why == "" {
		return err
	}
	p.add(&change{what: why, reload: true, do: func() (func() error, error) {
		return nil, makeKeys(p.manifest.Hostnames, now)
	}})
	return nil
}

// planFiles edits what sshd reads, in an order in which no step is dangerous
// without the next: a login name first exists for NSS, then PAM knows what to do
// with it, and then sshd lets it in.
func (p *plan) planFiles() error {
	nss, err := readFile(nssPath)
	if err != nil {
		return err
	}
	newNSS, added, err := insertNSS(nss)
	if err != nil {
		return err
	}
	p.manifest.NSS = append(p.manifest.NSS, added...)
	pam, err := readFile(pamPath)
	if err != nil {
		return err
	}
	newPAM, err := insertPAM(pam)
	if err != nil {
		return err
	}
	path := dropInPath(p.sshd.config)
	dropIn, exists, err := readOptional(path)
	if err != nil {
		return err
	}
	for _, e := range []edit{
		{path: nssPath, before: nss, exists: true, after: newNSS},
		{path: pamPath, before: pam, exists: true, after: newPAM},
		{path: path, before: dropIn, exists: exists, after: dropInText(), mode: 0o644},
	} {
		if !e.none() {
			p.changes = append(p.changes, editChange("edit "+e.path, e))
		}
	}
	return nil
}

func (p *plan) show(o Options) Result {
	r := Result{Changed: len(p.changes) > 0}
	for _, c := range p.changes {
		r.Steps = append(r.Steps, c.what)
		o.say("would %s", c.what)
		if c.diff != "" {
			o.say("    %s", strings.ReplaceAll(c.diff, "\n", "\n    "))
		}
	}
	if !r.Changed {
		o.say("nothing to change")
	}
	return r
}

func (p *plan) apply(ctx context.Context, o Options) (r Result, err error) {
	var undo undoStack
	reload := false
	defer func() {
		if err == nil {
			return
		}
		err = errors.Join(err, undo.run())
		if reload && !o.NoReload {
			err = errors.Join(err, p.sshd.reload(context.WithoutCancel(ctx), o))
		}
		r = Result{}
		o.say("rolled back")
	}()
	folder := filepath.Join(backupDir, o.now().UTC().Format("20060102T150405Z"))
	for _, c := range p.changes {
		if err := ctx.Err(); err != nil {
			return r, err
		}
		if c.file != "" {
			if err := backup(folder, c.edit); err != nil {
				return r, fmt.Errorf("back up %s: %w", c.file, err)
			}
		}
		back, err := c.do()
		undo.push(back)
		if err != nil {
			return r, fmt.Errorf("%s: %w", c.what, err)
		}
		r.Steps = append(r.Steps, c.what)
		o.say("%s", c.what)
	}
	if err := p.verify(ctx); err != nil {
		return r, err
	}
	if slices.ContainsFunc(p.changes, func(c change) bool { return c.reload }) {
		flushNameCache(ctx)
		if !o.NoReload {
			reload = true
			if err := p.sshd.reload(ctx, o); err != nil {
				return r, err
			}
		}
	}
	wrote, err := p.writeManifest(&undo)
	if err != nil {
		return r, err
	}
	if wrote && len(p.changes) == 0 {
		const what = "record that the files that changed since are in order"
		r.Steps = append(r.Steps, what)
		o.say("%s", what)
	}
	r.Changed = len(r.Steps) > 0
	if !r.Changed {
		o.say("nothing to change")
	}
	return r, nil
}

// verify asks sshd, before it reads the new files, what it would do.
func (p *plan) verify(ctx context.Context) error {
	if err := p.sshd.check(ctx); err != nil {
		return err
	}
	root, err := p.sshd.settingsFor(ctx, "root")
	if err != nil {
		return err
	}
	if err := root.checkRoot(); err != nil {
		return err
	}
	if root.one("forcecommand") == HookPath+" session" {
		return refuse("sshd would give root's logins to podspawn", "look for Match lines in sshd_config that our drop-in could end up in")
	}
	probe, err := p.sshd.settingsForSandbox(ctx)
	if err != nil {
		return err
	}
	if wrong := probe.wrong(); wrong != "" {
		return refuse("something else in sshd_config decides about sandbox logins: "+wrong, "look for Match blocks that are read before "+dropInPath(p.sshd.config))
	}
	p.manifest.SFTP = sftpText(probe)
	return probe.checkDenied()
}

// sftpText returns what sshd runs for the sftp subsystem, as it will be in
// SSH_ORIGINAL_COMMAND.
func sftpText(s settings) string {
	for _, v := range s["subsystem"] {
		if text, ok := strings.CutPrefix(v, "sftp "); ok {
			return text
		}
	}
	return ""
}

func (p *plan) writeManifest(undo *undoStack) (wrote bool, err error) {
	if err := p.manifest.record(); err != nil {
		return false, err
	}
	text, err := p.manifest.text()
	if err != nil {
		return false, err
	}
	before, exists, err := readOptional(ManifestPath)
	if err != nil {
		return false, err
	}
	e := edit{path: ManifestPath, before: before, exists: exists, after: text, mode: 0o644}
	if e.none() {
		return false, nil
	}
	back, err := e.apply()
	undo.push(back)
	return true, err
}

// undoStack takes back steps, the last one first.
type undoStack []func() error

func (u *undoStack) push(f func() error) {
	if f != nil {
		*u = append(*u, f)
	}
}

func (u *undoStack) run() error {
	var errs []error
	for _, f := range slices.Backward(*u) {
		errs = append(errs, f())
	}
	*u = nil
	return errors.Join(errs...)
}

// lock keeps two set-ups apart.
func lock() (unlock func(), err error) {
	f, err := os.OpenFile(lockPath, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close() // the lock's error is the one to report
		return nil, refuse("another podspawn server-setup is running", "wait for it")
	}
	return func() { _ = f.Close() }, nil // closing unlocks
}
