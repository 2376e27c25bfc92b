package dockertest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox/docker"
)

const (
	startTimeout = 60 * time.Second
	stopTimeout  = 60 * time.Second
)

// Options of an engine. The zero value has podspawn's runtimes.
type Options struct {
	// Runtimes replace podspawn's when not nil, to test what happens without them.
	Runtimes map[string]docker.RuntimeEntry
}

// Daemon is a Docker engine with its own data, socket and containerd. It has no
// bridge and no firewall rules, so it changes nothing of the machine's network.
type Daemon struct {
	Socket string
	Dir    string // of everything it keeps; removed when the test ends

	opts   Options
	cmd    *exec.Cmd
	done   chan error // receives what dockerd's Wait said, once
	killed bool       // without a Start since
}

// Start runs an engine until the test ends. It skips the test like [Need].
func Start(t testing.TB) *Daemon { return StartWith(t, Options{}) }

// StartWith is Start with options.
func StartWith(t testing.TB, opts Options) *Daemon {
	t.Helper()
	Need(t)
	// Not t.TempDir: the path of a unix socket is short, and overlay does not stack on overlay.
	dir, err := os.MkdirTemp("/var/tmp", "podspawn-docker-")
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{Socket: filepath.Join(dir, "docker.sock"), Dir: dir, opts: opts}
	t.Cleanup(func() {
		if d.killed { // only an engine can clear away what the killed one left
			if err := d.Start(); err != nil {
				t.Errorf("start dockerd once more: %v", err)
			}
		}
		if err := d.Stop(); err != nil {
			t.Errorf("stop dockerd: %v\n%s", err, d.log())
		}
		d.killStray()
		d.unmount()
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove dockerd's folder: %v", err)
		}
	})
	if err := d.Start(); err != nil {
		t.Fatalf("start dockerd: %v", err)
	}
	return d
}

// Start starts the engine again after Stop or Kill.
func (d *Daemon) Start() error {
	entries := d.opts.Runtimes
	if entries == nil {
		entries = docker.DaemonRuntimes(Runsc())
	}
	conf, err := json.Marshal(map[string]any{"runtimes": entries})
	if err != nil {
		return err
	}
	file := filepath.Join(d.Dir, "daemon.json")
	if err := os.WriteFile(file, conf, 0o600); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(d.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("dockerd", "--config-file="+file, "--host=unix://"+d.Socket,
		"--data-root="+filepath.Join(d.Dir, "data"), "--exec-root="+filepath.Join(d.Dir, "exec"),
		"--pidfile="+filepath.Join(d.Dir, "pid"), "--iptables=false", "--ip6tables=false", "--bridge=none")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	started := make(chan error)
	done := make(chan error, 1)
	go func() {
		// Pdeathsig is about the thread that forked, so this one stays until dockerd ends.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			done <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	d.cmd, d.done, d.killed = cmd, done, false
	return d.await()
}

func (d *Daemon) await() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	c := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", d.Socket)
		},
	}}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/_ping", nil)
		if err != nil {
			return err
		}
		if resp, err := c.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case err := <-d.done:
			d.cmd = nil
			return fmt.Errorf("dockerd ended: %w\n%s", err, d.log())
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Stop ends the engine, its containers and its containerd, and waits for them.
func (d *Daemon) Stop() error { return d.end(syscall.SIGTERM) }

// Kill ends dockerd as a crash would; the kernel ends its containerd with it. Its
// containers stay until the next Start and Stop.
func (d *Daemon) Kill() error {
	if d.cmd == nil {
		return nil
	}
	d.killed = true
	if err := d.end(syscall.SIGKILL); err != nil {
		return err
	}
	return d.forgetContainerd()
}

// forgetContainerd removes the pid file of a containerd that died. Where PID 1 does
// not reap, the dead process stays as a zombie, and the next dockerd would take it
// for alive and wait for it in vain.
func (d *Daemon) forgetContainerd() error {
	file := filepath.Join(d.Dir, "exec/containerd/containerd.pid")
	pid, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for deadline := time.Now().Add(stopTimeout); ; time.Sleep(20 * time.Millisecond) {
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
		if err != nil || bytes.Contains(stat, []byte(") Z ")) {
			return os.Remove(file)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("containerd %s outlives its dockerd", pid)
		}
	}
}

func (d *Daemon) end(sig syscall.Signal) error {
	if d.cmd == nil {
		return nil
	}
	if err := d.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-d.done:
		d.cmd = nil
		return nil
	case <-time.After(stopTimeout):
		return errors.Join(errors.New("dockerd did not end in time"), d.cmd.Process.Kill())
	}
}

// killStray ends shims that a killed containerd left behind. They carry our folder,
// whose name is nobody else's, in their arguments.
func (d *Daemon) killStray() {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		pid, perr := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err != nil || perr != nil || pid == os.Getpid() || !bytes.Contains(b, []byte(d.Dir+"/exec/")) {
			continue
		}
		// One that has gone since needs nothing.
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// unmount takes away what a crashed engine left mounted, so that removing the
// folder removes no more than the folder.
func (d *Daemon) unmount() {
	for _, m := range mountsUnder(d.Dir) {
		// What stays mounted makes RemoveAll fail, which is reported.
		_ = unix.Unmount(m, unix.MNT_DETACH)
	}
}

func (d *Daemon) log() string {
	b, err := os.ReadFile(filepath.Join(d.Dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-2048):])
}
