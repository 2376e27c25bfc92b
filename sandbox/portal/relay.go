package portal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
)

// RelayPort is where a portal's relay listens. sshd gives no user a port below
// 1024, and no process of the uid may take one, so while the relay is dead nobody
// can listen in its place: with a high port, a user did (-R).
const RelayPort = 1

// resolverPort is where a portal's resolv.conf says that names are resolved.
const resolverPort = 53

// OpenRelay gives a portal its doorway: routes by which every address is local,
// a rule that brings every outgoing TCP connection to RelayPort, and the relay
// that listens there: the hook, as the sandbox's uid and with the group that the
// rule spares.
//
// It is idempotent. A relay that runs holds the port, also one that an earlier
// daemon started, and then there is nothing to do: the kernel is the register.
// The relay is a process of the sandbox's uid, so Close ends it; it outlives this
// process otherwise.
func (h *Host) OpenRelay(ctx context.Context, login string, uid int) error {
	if err := check(login, uid); err != nil {
		return err
	}
	defer h.lock(login)()
	path := filepath.Join(h.c.NetNS, login)
	ns, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(ns)
	var st unix.Statfs_t
	if err := unix.Fstatfs(ns, &st); err != nil || st.Type != unix.NSFS_MAGIC {
		return errors.Join(errNotMounted, err)
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close() // the relay has its own by now
		}
	}()
	err = within(ns, func() (err error) {
		files, err = relaySockets()
		return err
	})
	if errors.Is(err, unix.EADDRINUSE) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listen in the portal: %w", err)
	}
	if err := h.doorway(ctx, login, ns, len(files) > 2); err != nil {
		return err
	}
	cmd := exec.Command(h.c.Shell, "relay", login) // the name is for people: ps
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Credential: &syscall.Credential{Uid: uint32(uid), Gid: sandbox.RelayGID, Groups: []uint32{}},
	}
	if err := within(ns, cmd.Start); err != nil {
		return fmt.Errorf("start the relay: %w", err)
	}
	go func() { _ = cmd.Wait() }() // only so that it is no zombie; it may outlive us
	return nil
}

// relaySockets opens what the relay could not, in the order in which it expects
// them: the resolver's socket, and listeners on RelayPort of both loopbacks, or
// of IPv4's where there is no IPv6.
func relaySockets() ([]*os.File, error) {
	var files []*os.File
	for _, a := range []unix.Sockaddr{
		&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: resolverPort},
		&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: RelayPort},
		&unix.SockaddrInet6{Addr: [16]byte(net.IPv6loopback), Port: RelayPort},
	} {
		f, err := relaySocket(a, len(files) == 0)
		if len(files) > 1 && (errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)) {
			break
		}
		if err != nil {
			for _, f := range files {
				_ = f.Close() // the error above is the one to report
			}
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

func relaySocket(a unix.Sockaddr, datagrams bool) (*os.File, error) {
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	if _, ok := a.(*unix.SockaddrInet6); ok {
		family = unix.AF_INET6
	}
	if datagrams {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if !datagrams {
		// Connections of an earlier relay may still be in TIME_WAIT.
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err == nil && family == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil {
		err = unix.Bind(fd, a)
	}
	if err == nil && !datagrams {
		err = unix.Listen(fd, 512)
	}
	if err != nil {
		_ = unix.Close(fd) // the error above is the one to report
		return nil, err
	}
	return os.NewFile(uintptr(fd), "relay"), nil
}

// doorway makes routes and rule. The rule replaces an earlier one in one transaction.
func (h *Host) doorway(ctx context.Context, login string, ns int, v6 bool) error {
	routes := [][]string{{"-n", login, "route", "replace", "local", "0.0.0.0/0", "dev", "lo"}}
	if v6 {
		routes = append(routes, []string{"-n", login, "-6", "route", "replace", "local", "::/0", "dev", "lo"})
	}
	for _, r := range routes {
		if err := ip(ctx, r...); err != nil {
			return err
		}
	}
	c, err := nftables.New(nftables.WithNetNSFd(ns))
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	family := nftables.TableFamilyINet
	t := c.AddTable(&nftables.Table{Name: "podspawn", Family: family})
	accept := nftables.ChainPolicyAccept
	ch := c.AddChain(&nftables.Chain{
		Name: "doorway", Table: t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest, Policy: &accept,
	})
	c.FlushChain(ch)
	c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: doorwayRule()})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("install the portal's rule: %w", err)
	}
	return nil
}

// doorwayRule is "meta l4proto tcp meta skgid != podspawn-relay redirect to :1".
func doorwayRule() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Meta{Key: expr.MetaKeySKGID, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, sandbox.RelayGID)},
		&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, RelayPort)},
		&expr.Redir{RegisterProtoMin: 1},
	}
}

// within runs f on a thread that is in the network namespace meanwhile. What f
// starts is in it, too.
func within(ns int, f func() error) (err error) {
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer unix.Close(home)
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the namespace: %w", err)
	}
	defer func() {
		if serr := unix.Setns(home, unix.CLONE_NEWNET); serr != nil {
			// The thread stays locked, so that no other goroutine ever runs in there.
			err = errors.Join(err, serr)
			return
		}
		runtime.UnlockOSThread()
	}()
	return f()
}
