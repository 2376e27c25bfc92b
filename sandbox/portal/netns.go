package portal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/fault"
)

// openNetNS makes the named namespace with its loopback interface up, and the
// folder without which pam_usernet aborts the login. It is idempotent and
// returns the namespace's cookie.
func (h *Host) openNetNS(ctx context.Context, login string) (uint64, error) {
	if err := h.writeEtc(login); err != nil {
		return 0, err
	}
	path := filepath.Join(h.c.NetNS, login)
	cookie, err := Cookie(path)
	switch {
	case err == nil:
	case errors.Is(err, errNotMounted):
		// A crash between making the name and mounting the namespace on it.
		if err := os.Remove(path); err != nil {
			return 0, err
		}
		fallthrough
	case errors.Is(err, fs.ErrNotExist):
		fault.At("portal.open.folder")
		if err := ip(ctx, "netns", "add", login); err != nil {
			return 0, err
		}
		if cookie, err = Cookie(path); err != nil {
			return 0, err
		}
	default:
		return 0, err
	}
	if err := ip(ctx, "-n", login, "link", "set", "lo", "up"); err != nil {
		return 0, err
	}
	return cookie, nil
}

// closeNetNS unmounts and removes the namespace's name. The namespace itself goes
// with its last process, and those were killed before.
func (h *Host) closeNetNS(_ context.Context, login string) error {
	path := filepath.Join(h.c.NetNS, login)
	for { // stacked mounts, should there ever be any
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	fault.At("portal.close.unmounted")
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	fault.At("portal.close.netns")
	if err := os.RemoveAll(filepath.Join(h.c.EtcNetNS, login)); err != nil {
		return err
	}
	return nil
}

// errNotMounted is a name in the namespaces' folder with no namespace behind it.
var errNotMounted = errors.New("no network namespace is mounted there")

// ip runs iproute2. Its arguments are constants and names that check accepted.
func ip(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// sandboxNames lists the entries of a folder that are sandbox logins; a missing
// folder has none.
func sandboxNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if _, err := sandbox.ParseLogin(e.Name()); err == nil {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
