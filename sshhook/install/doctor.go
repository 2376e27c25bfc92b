package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/podspawn/podspawn/sandbox"
)

// Status is how a check came out.
type Status string

// The statuses. Warn works, but not as well as it should.
const (
	Pass Status = "pass"
	Warn Status = "warn"
	Fail Status = "fail"
)

// Check is one precondition, as podspawn doctor shows it.
type Check struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	Detail string `json:"detail,omitempty"`
	Remedy string `json:"remedy,omitempty"` // set unless Status is Pass
}

// warning is a finding that is no failure.
type warning struct{ msg, hint string }

func (w *warning) Error() string { return w.msg }

const setUpAgain = "run podspawn server-setup"

// Checks looks at everything that set-up is about, and changes nothing. It goes
// on after a failure. Run it as root, or what it can't read it reports as failed.
func Checks(ctx context.Context, o Options) []Check {
	d := doctor{o: o}
	if path, err := findSSHD(); err == nil {
		d.sshd = sshd{path, o.config()}
	}
	var out []Check
	for _, c := range []struct {
		name string
		run  func(context.Context) (detail string, err error)
	}{
		{"root", d.root},
		{"sshd", d.server},
		{"sshd configuration", d.configuration},
		{"sshd for sandbox logins", d.sandboxLogins},
		{"sshd running", d.running},
		{"sshd drop-in", d.dropIn},
		{"pam", d.pam},
		{"pam and nss modules", d.modules},
		{"nsswitch", d.nss},
		{"name cache", d.nameCache},
		{"selinux", func(context.Context) (string, error) { return "", checkSELinux() }},
		{"programs", d.programs},
		{"users", d.users},
		{"real users", func(context.Context) (string, error) { return "", checkRealUsers() }},
		{"directories", d.directories},
		{"keys", d.keys},
		{"revocation list", d.revocations},
		{"unchanged since set-up", d.manifest},
		{"network namespaces", d.namespaces},
		{"firewall", d.firewall},
	} {
		detail, err := c.run(ctx)
		out = append(out, finding(c.name, detail, err))
	}
	return out
}

func finding(name, detail string, err error) Check {
	if err == nil {
		return Check{Name: name, Status: Pass, Detail: detail}
	}
	if w, ok := errors.AsType[*warning](err); ok {
		return Check{Name: name, Status: Warn, Detail: w.msg, Remedy: w.hint}
	}
	if e, ok := errors.AsType[*sandbox.Error](err); ok {
		return Check{Name: name, Status: Fail, Detail: e.Error(), Remedy: e.Hint}
	}
	return Check{Name: name, Status: Fail, Detail: err.Error(), Remedy: setUpAgain}
}

type doctor struct {
	o    Options
	sshd sshd
}

func (d doctor) root(context.Context) (string, error) {
	if os.Geteuid() != 0 {
		return "", refuse("not running as root", "run sudo podspawn doctor, or some checks fail for want of permission")
	}
	return "", nil
}

func (d doctor) server(ctx context.Context) (string, error) {
	if d.sshd.path == "" {
		_, err := findSSHD()
		return "", err
	}
	// "-V" is an unknown option to older servers, which then print their version too.
	out, _ := exec.CommandContext(ctx, d.sshd.path, "-V").CombinedOutput()
	for l := range strings.Lines(string(out)) {
		if strings.HasPrefix(l, "OpenSSH_") {
			return strings.TrimSpace(l), nil
		}
	}
	return d.sshd.path, nil
}

var errNoServer = refuse("there is no sshd on this machine", "apt-get install openssh-server")

func (d doctor) configuration(ctx context.Context) (string, error) {
	if d.sshd.path == "" {
		return "", errNoServer
	}
	if _, err := os.Stat(privsepDir); errors.Is(err, fs.ErrNotExist) {
		return "", refuse(privsepDir+" is missing, without which sshd does not start", "mkdir -p "+privsepDir+", or start sshd by its service")
	}
	if err := checkOrder(d.sshd.config); err != nil {
		return "", err
	}
	if err := d.sshd.check(ctx); err != nil {
		return "", refuse(err.Error(), "repair "+d.sshd.config)
	}
	global, err := d.sshd.settings(ctx)
	if err != nil {
		return "", err
	}
	root, err := d.sshd.settingsFor(ctx, "root")
	if err != nil {
		return "", err
	}
	return d.sshd.config, errors.Join(global.checkGlobal(), root.checkRoot())
}

func (d doctor) sandboxLogins(ctx context.Context) (string, error) {
	if d.sshd.path == "" {
		return "", errNoServer
	}
	probe, err := d.sshd.settingsForSandbox(ctx)
	if err != nil {
		return "", err
	}
	if wrong := probe.wrong(); wrong != "" {
		return "", refuse(wrong, setUpAgain)
	}
	return "", probe.checkDenied()
}

func (d doctor) running(ctx context.Context) (string, error) {
	if d.sshd.path == "" {
		return "", errNoServer
	}
	set, err := d.sshd.settings(ctx)
	if err != nil {
		return "", err
	}
	pid, ok := runningSSHD(set.one("pidfile"))
	if !ok {
		return "", &warning{"no sshd runs with this configuration", "start it: systemctl start ssh, or " + d.sshd.path}
	}
	return fmt.Sprintf("pid %d, listening on %s", pid, strings.Join(set["listenaddress"], ", ")), nil
}

func (d doctor) dropIn(context.Context) (string, error) {
	path := dropInPath(d.o.config())
	text, err := readFile(path)
	if err != nil {
		return "", err
	}
	if text != dropInText() {
		return "", refuse(path+" is not as this version writes it", setUpAgain)
	}
	return path, nil
}

func (d doctor) pam(context.Context) (string, error) {
	text, err := readFile(pamPath)
	if err != nil {
		return "", err
	}
	want, err := insertPAM(text)
	if err == nil && want != text {
		err = refuse("podspawn's lines are not first in the session part of "+pamPath, setUpAgain)
	}
	return pamPath, err
}

func (d doctor) modules(context.Context) (string, error) { return "", checkModules() }

func (d doctor) nss(context.Context) (string, error) {
	text, err := readFile(nssPath)
	if err != nil {
		return "", err
	}
	_, missing, err := insertNSS(text)
	if err == nil && len(missing) > 0 {
		err = refuse("extrausers is missing from "+nssPath+" for "+strings.Join(missing, ", "), setUpAgain)
	}
	return nssPath, err
}

// nameCache warns about nscd, which remembers for a while that a login that was
// asked for too early does not exist.
func (d doctor) nameCache(context.Context) (string, error) {
	for _, p := range []string{"/run/nscd/socket", "/run/unscd/socket"} {
		if _, err := os.Stat(p); err == nil {
			return "", &warning{"nscd is running and may hide new sandbox logins", "set negative-time-to-live passwd 0 and group 0 in /etc/nscd.conf, or stop nscd"}
		}
	}
	return "", nil
}

func (d doctor) programs(context.Context) (string, error) {
	dir := filepath.Dir(HookPath)
	for _, p := range []string{HookPath, filepath.Join(dir, "podspawn-guest"), filepath.Join(dir, "runsc")} {
		if err := checkProgram(p); err != nil {
			return "", err
		}
	}
	return dir, nil
}

func (d doctor) users(context.Context) (string, error) {
	for _, name := range []string{authUser, apiUser, dnsUser} {
		if _, err := user.Lookup(name); err != nil {
			return "", refuse("user "+name+" is missing", setUpAgain)
		}
	}
	text, err := readFile(extraGroup)
	if err != nil {
		return "", err
	}
	have, err := checkGroups(text, extraGroup)
	if err == nil && !have {
		err = refuse("group "+groupName+" or "+relayGroup+" is missing from "+extraGroup, setUpAgain)
	}
	return "", err
}

func (d doctor) directories(context.Context) (string, error) {
	for _, want := range dirs {
		st, err := os.Stat(want.path)
		if err != nil {
			return "", err
		}
		sys, ok := st.Sys().(*syscall.Stat_t)
		if want.ours && (!ok || sys.Uid != 0 || st.Mode().Perm() != os.FileMode(want.mode)) {
			return "", refuse(fmt.Sprintf("%s is not root's with mode %04o", want.path, want.mode), setUpAgain)
		}
	}
	entries, err := os.ReadDir("/var/lib/podspawn/home")
	if err == nil && len(entries) > 0 {
		err = refuse("/var/lib/podspawn/home, the home of sandbox logins, is not empty", "remove what is in it: sshd may read it for every sandbox")
	}
	return "", err
}

func (d doctor) keys(context.Context) (string, error) {
	names, err := d.o.hostnames()
	if err != nil {
		return "", err
	}
	if m, err := LoadManifest(ManifestPath); err == nil && len(d.o.Hostnames) == 0 {
		names = m.Hostnames
	}
	why, err := keyProblem(names, d.o.now())
	if err == nil && why != "" {
		err = refuse("to do: "+why, setUpAgain)
	}
	return "", err
}

// revocations has sshd's own tool read the list: a broken one locks every
// sandbox login out.
func (d doctor) revocations(ctx context.Context) (string, error) {
	if out, err := exec.CommandContext(ctx, "ssh-keygen", "-Q", "-l", "-f", revokedKRL).CombinedOutput(); err != nil {
		return "", refuse("sshd can't read "+revokedKRL+": "+firstLine(string(out)), "remove it and "+setUpAgain)
	}
	return revokedKRL, nil
}

func (d doctor) manifest(context.Context) (string, error) {
	m, err := LoadManifest(ManifestPath)
	if errors.Is(err, fs.ErrNotExist) {
		return "", refuse("podspawn server-setup has not run", setUpAgain)
	}
	if err != nil {
		return "", err
	}
	return "", m.Check()
}

func (d doctor) namespaces(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	if err := cmd.Run(); err != nil {
		return "", refuse("network namespaces can't be made: "+err.Error(), "run podspawn on a host, or in a container that may (CAP_SYS_ADMIN)")
	}
	return "", nil
}

// firewall asks whether the kernel has nftables, by the tool where there is one.
func (d doctor) firewall(ctx context.Context) (string, error) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		return "", &warning{"the nft tool is missing, so the rules can't be looked at", "apt-get install nftables"}
	}
	if out, err := exec.CommandContext(ctx, nft, "list", "tables").CombinedOutput(); err != nil {
		return "", refuse("the kernel's nftables do not answer: "+firstLine(string(out)), "load the module nf_tables")
	}
	return "", nil
}
