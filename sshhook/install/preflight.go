package install

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/podspawn/podspawn/sandbox"
)

// preflight refuses hosts on which set-up would not work or would not be safe.
// It changes nothing. It does not ask sshd about sandbox logins: that needs the
// files in place, and follows before sshd reads them.
func preflight(ctx context.Context, s sshd) error {
	if os.Geteuid() != 0 {
		return refuse("set-up needs root", "run it with sudo")
	}
	checks := []func() error{
		checkSELinux,
		checkModules,
		func() error { return checkProgram(HookPath) },
		checkRealUsers,
		func() error { return checkOrder(s.config) },
		checkForeignDropIn(s.config),
	}
	for _, check := range checks {
		if err := check(); err != nil {
			return err
		}
	}
	if err := s.check(ctx); err != nil {
		return refuse(err.Error(), "repair it first: set-up changes only a configuration that works")
	}
	global, err := s.settings(ctx)
	if err != nil {
		return err
	}
	if err := global.checkGlobal(); err != nil {
		return err
	}
	root, err := s.settingsFor(ctx, "root")
	if err != nil {
		return err
	}
	if err := root.checkRoot(); err != nil {
		return err
	}
	return global.checkDenied()
}

// checkSELinux refuses enforcing mode, whose policy would have to know our hooks.
func checkSELinux() error {
	b, err := os.ReadFile("/sys/fs/selinux/enforce")
	if err == nil && strings.TrimSpace(string(b)) == "1" {
		return refuse("SELinux is enforcing", "podspawn has no SELinux policy yet; setenforce 0, or use another host")
	}
	return nil
}

// module is a shared library that set-up relies on.
type module struct{ file, pack string }

var modules = [...]module{
	{"security/pam_usernet.so", "libpam-net"},
	{"security/pam_succeed_if.so", "libpam-modules"},
	{"security/pam_exec.so", "libpam-modules"},
	{"security/pam_permit.so", "libpam-modules"},
	{"libnss_extrausers.so.2", "libnss-extrausers"},
}

func checkModules() error {
	for _, m := range modules {
		if m.find() == "" {
			return refuse(filepath.Base(m.file)+" is missing", "apt-get install "+m.pack)
		}
	}
	return nil
}

// find returns where the module is, "" when it is nowhere.
func (m module) find() string {
	for _, pattern := range []string{"/lib/*/", "/usr/lib/*/", "/lib/", "/usr/lib/", "/lib64/", "/usr/lib64/"} {
		found, err := filepath.Glob(pattern + m.file)
		if err == nil && len(found) > 0 && !strings.Contains(found[0], "/lib32/") {
			return found[0]
		}
	}
	return ""
}

// checkProgram refuses a hook that sshd would refuse to run: it and every folder
// above it must be root's and writable for nobody else.
func checkProgram(path string) error {
	for p := path; ; p = filepath.Dir(p) {
		st, err := os.Stat(p)
		if err != nil {
			return refuse(path+" is missing", "install the binaries first: make up")
		}
		sys, ok := st.Sys().(*syscall.Stat_t)
		if !ok || sys.Uid != 0 || st.Mode().Perm()&0o022 != 0 {
			return refuse(p+" can be changed by others than root", "chown root "+p+" && chmod go-w "+p)
		}
		if p == path && st.Mode().Perm()&0o111 == 0 {
			return refuse(p+" is not executable", "chmod 755 "+p)
		}
		if p == "/" {
			return nil
		}
	}
}

// checkRealUsers refuses a host where our names or numbers belong to somebody:
// the firewall rule and the Match block would hit them.
func checkRealUsers() error {
	passwd, err := readFile("/etc/passwd")
	if err != nil {
		return err
	}
	for l := range strings.Lines(passwd) {
		f := strings.Split(l, ":")
		if len(f) < 4 {
			continue
		}
		uid, err := strconv.Atoi(f[2])
		if err == nil && uid >= sandbox.MinUID && uid <= sandbox.MaxUID {
			return refuse(fmt.Sprintf("user %s has uid %d, which is kept for sandboxes", f[0], uid), "give it another with usermod -u")
		}
		if f[3] == strconv.Itoa(sandbox.LoginGID) || strings.HasPrefix(f[0], "sbx-") {
			return refuse(fmt.Sprintf("user %s in /etc/passwd looks like a sandbox login", f[0]), "rename it, or give it another primary group")
		}
	}
	group, err := readFile("/etc/group")
	if err != nil {
		return err
	}
	if _, err := checkGroups(group, "/etc/group"); err != nil {
		return err
	}
	extra, _, err := readOptional(extraGroup)
	if err != nil {
		return err
	}
	_, err = checkGroups(extra, extraGroup)
	return err
}

// checkForeignDropIn refuses to overwrite a drop-in that is not ours.
func checkForeignDropIn(config string) func() error {
	return func() error {
		path := dropInPath(config)
		text, exists, err := readOptional(path)
		if err != nil {
			return err
		}
		if exists && !strings.HasPrefix(text, dropInHeader) {
			return refuse(path+" was not written by podspawn", "rename or remove it")
		}
		return nil
	}
}
