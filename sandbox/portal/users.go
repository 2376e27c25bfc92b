package portal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
)

// Users of classic mode have a login and a portal for as long as they are
// registered, whether or not they have a sandbox: sshd looks the name up, and PAM
// enters the portal, before anything could be made. Their sandbox shares both uid
// and portal ([Host.Share]). A sandbox that a user gave a name gets a second login,
// user+name, with the sandbox's own uid and portal ([Host.OpenAlias]).

func checkUser(name string, uid int) error {
	if err := sandbox.ValidateUser(name); err != nil {
		return err
	}
	if !sandbox.IsUserUID(uid) {
		return fmt.Errorf("uid %d is not a user's", uid)
	}
	return nil
}

func checkAlias(alias string) error {
	if _, name, ok := sandbox.ParseUserLogin(alias); !ok || name == "" {
		return fmt.Errorf("%q is no second login of a sandbox", alias)
	}
	return nil
}

// OpenUser makes a user's portal and login. It is idempotent and returns what
// identifies the portal's network namespace.
func (h *Host) OpenUser(ctx context.Context, name string, uid int) (uint64, error) {
	if err := checkUser(name, uid); err != nil {
		return 0, err
	}
	defer h.lock(name)()
	cookie, err := h.openNetNS(ctx, name)
	if err != nil {
		return 0, err
	}
	if err := h.logins.add(name, uid); err != nil {
		return 0, fmt.Errorf("add login %s: %w", name, err)
	}
	return cookie, nil
}

// CloseUser removes a user's processes, portal and login. It is idempotent.
func (h *Host) CloseUser(ctx context.Context, name string, uid int) error {
	if err := checkUser(name, uid); err != nil {
		return err
	}
	defer h.lock(name)()
	if err := h.logins.remove(name); err != nil { // first: nobody logs in any more
		return fmt.Errorf("remove login %s: %w", name, err)
	}
	if err := killAll(ctx, uid); err != nil {
		return fmt.Errorf("end the processes of uid %d: %w", uid, err)
	}
	if err := errors.Join(h.removeFiles(uid), removeIPC(uid)); err != nil {
		return fmt.Errorf("remove what uid %d left: %w", uid, err)
	}
	return h.closeNetNS(ctx, name)
}

// Share makes user's portal the one that Open(login) finds. It is idempotent.
func (h *Host) Share(_ context.Context, user, login string) error {
	if err := sandbox.ValidateUser(user); err != nil {
		return err
	}
	if _, err := sandbox.ParseLogin(login); err != nil {
		return err
	}
	defer h.lock(login)()
	return h.bindNetNS(user, login)
}

// OpenAlias gives an open sandbox a second login. It is idempotent.
func (h *Host) OpenAlias(_ context.Context, login, alias string, uid int) error {
	if err := errors.Join(check(login, uid), checkAlias(alias)); err != nil {
		return err
	}
	defer h.lock(alias)()
	if err := os.MkdirAll(filepath.Join(h.c.EtcNetNS, alias), 0o755); err != nil {
		return err
	}
	if err := h.bindNetNS(login, alias); err != nil {
		return err
	}
	if err := h.logins.add(alias, uid); err != nil {
		return fmt.Errorf("add login %s: %w", alias, err)
	}
	return nil
}

// CloseAlias removes it. It is idempotent.
func (h *Host) CloseAlias(ctx context.Context, alias string) error {
	if err := checkAlias(alias); err != nil {
		return err
	}
	defer h.lock(alias)()
	if err := h.logins.remove(alias); err != nil {
		return fmt.Errorf("remove login %s: %w", alias, err)
	}
	return h.closeNetNS(ctx, alias)
}

// bindNetNS gives a namespace a second name.
func (h *Host) bindNetNS(from, to string) error {
	source, target := filepath.Join(h.c.NetNS, from), filepath.Join(h.c.NetNS, to)
	want, err := Cookie(source)
	if err != nil {
		return err
	}
	if have, err := Cookie(target); err == nil {
		if have != want {
			return fmt.Errorf("%s is another namespace than %s", target, source)
		}
		return nil
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, target, err)
	}
	return nil
}

// Taken reports whether somebody else than podspawn has the name, as a user or as
// a group: who, in words, or "". It asks the system's own name service, which also
// knows directories on the network.
func (h *Host) Taken(ctx context.Context, name string) (string, error) {
	for _, db := range []string{"passwd", "group"} {
		out, err := exec.CommandContext(ctx, "getent", db, "--", name).Output()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 2 {
			continue // not found
		}
		if err != nil {
			return "", fmt.Errorf("getent %s %s: %w", db, name, err)
		}
		if f := strings.Split(strings.TrimSpace(string(out)), ":"); len(f) > 2 {
			return "a " + map[string]string{"passwd": "user", "group": "group"}[db] + " of this machine with id " + f[2], nil
		}
	}
	return "", nil
}

// ListUsers returns the users that have a login, with their uids.
func (h *Host) ListUsers(context.Context) (map[string]int, error) {
	lines, err := readLines(filepath.Join(h.c.ExtraUsers, "passwd"))
	if err != nil {
		return nil, err
	}
	all := map[string]int{}
	for _, line := range lines {
		f := strings.Split(line, ":")
		if len(f) < 4 || f[3] != strconv.Itoa(sandbox.LoginGID) {
			continue
		}
		if uid, err := strconv.Atoi(f[2]); err == nil && checkUser(f[0], uid) == nil {
			all[f[0]] = uid
		}
	}
	return all, nil
}
