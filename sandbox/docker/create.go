package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	units "github.com/docker/go-units"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/fault"
)

var (
	idPattern = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

	errOddID       = errors.New("the engine's image id is no sha256 digest")
	errNotOurs     = errors.New("the container does not run under the runtime that was asked for")
	errNotRunning  = errors.New("the container ended as soon as it began")
	errSocketMount = errors.New("socket directory is not an absolute path")
)

// createTimeout bounds the creation of a container, whoever waits.
const createTimeout = 60 * time.Second

// runscPIDs is what gVisor itself takes of the host's limit of processes and
// threads. That limit is the outer one: a sandbox that reaches it dies, since its
// kernel then cannot make a thread. Inside, fork fails earlier, at nproc: gVisor
// holds root to it as well, for want of CAP_SYS_RESOURCE.
const runscPIDs = 64

// capabilities are what root inside a sandbox keeps of Docker's defaults: what
// package managers need to unpack and configure (CHOWN, DAC_OVERRIDE, FOWNER,
// FSETID), what they and the guest need to become another user and to signal its
// processes (SETUID, SETGID, KILL), what they need to run scripts in another root
// (SYS_CHROOT), and low ports on the sandbox's own network stack. They hold against gVisor's
// kernel, not the host's. Left out: MKNOD, NET_RAW, SETFCAP, SETPCAP, AUDIT_WRITE.
func capabilities() []string {
	return []string{
		"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID", "SYS_CHROOT",
	}
}

// Start implements sandbox.Runtime.
func (r *Runtime) Start(ctx context.Context, p sandbox.StartParams) (box sandbox.Container, err error) {
	name, err := r.checkParams(p)
	if err != nil {
		return sandbox.Container{}, err
	}
	if err := r.writeEtc(); err != nil {
		return sandbox.Container{}, err
	}
	if err := ctx.Err(); err != nil {
		return sandbox.Container{}, fmt.Errorf("start %s: %w", p.Sandbox, err)
	}
	nonce := sandbox.NewToken("st_")
	defer func() {
		if err == nil {
			return
		}
		// Only what this call made: the id may have a container of another call.
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyTimeout)
		defer cancel()
		if uerr := r.removeAll(undo, labelStart+"="+nonce); uerr != nil { // networks too
			err = errors.Join(err, fmt.Errorf("remove what was left of the start: %w", uerr))
		}
	}()

	// The engine goes on creating when a request is abandoned, and would have the
	// container after we looked for it. So creation is never abandoned.
	net, err := r.networkFor(context.WithoutCancel(ctx), p, nonce)
	if err != nil {
		return sandbox.Container{}, err
	}
	id, err := r.create(context.WithoutCancel(ctx), p, name, net, nonce)
	if err != nil {
		return sandbox.Container{}, err
	}
	fault.At("docker.start.created")
	if err := r.api.ContainerStart(ctx, id, container.StartOptions{}); err != nil {
		return sandbox.Container{}, engineError("start container", err)
	}
	fault.At("docker.start.started")
	if err := r.verify(ctx, id, name); err != nil {
		return sandbox.Container{}, err
	}
	return sandbox.Container{Sandbox: p.Sandbox, ID: id, Running: true}, nil
}

// checkParams refuses what must never reach the engine, although the caller should
// have, and returns the runtime's name.
func (r *Runtime) checkParams(p sandbox.StartParams) (string, error) {
	if _, err := sandbox.ParseID(string(p.Sandbox)); err != nil {
		return "", fmt.Errorf("start: %w", err)
	}
	switch {
	case p.Egress == sandbox.EgressNone:
	case p.Egress != sandbox.EgressPublic:
		return "", sandbox.Errorf(sandbox.KindEgressDenied, "use egress public or none", "network.egress: %q is not supported yet", p.Egress)
	case r.cfg.Networks == nil:
		return "", sandbox.Errorf(sandbox.KindUnavailable, "use egress none", "this host makes no networks for sandboxes")
	}
	if !idPattern.MatchString(p.ImageID) {
		return "", errNoImage(p.ImageID, nil)
	}
	if !filepath.IsAbs(p.SocketDir) {
		return "", fmt.Errorf("start %s: %w", p.Sandbox, errSocketMount)
	}
	class, err := classFor(p.Resources.Disk)
	if err != nil {
		return "", err
	}
	if p.Resources.Memory <= 0 || p.Resources.PIDs <= 0 || p.Resources.CPUs <= 0 || p.Resources.Disk <= 0 {
		// Zero means no limit to the engine.
		return "", sandbox.Errorf(sandbox.KindInvalidSpec, "give cpus, memory, disk and pids", "resources: every limit must be positive")
	}
	return className(r.cfg.RuntimePrefix, class), nil
}

func (r *Runtime) create(ctx context.Context, p sandbox.StartParams, runtime, net, nonce string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	resp, err := r.api.ContainerCreate(ctx, r.config(p, nonce), r.hostConfig(p, runtime, net), nil, nil, containerName(p.Sandbox))
	switch {
	case err == nil:
	case gone(err):
		return "", errNoImage(p.ImageID, err)
	case cerrdefs.IsConflict(err):
		return "", &sandbox.Error{
			Kind: sandbox.KindConflict, Err: err, Msg: fmt.Sprintf("sandbox %s has a container already", p.Sandbox),
			Hint: "destroy it first",
		}
	default:
		return "", engineError("create container", err)
	}
	for _, w := range resp.Warnings {
		r.log.WarnContext(ctx, "container engine warns", "sandbox", p.Sandbox, "warning", w)
	}
	return resp.ID, nil
}

// containerName is for people; what counts is the label.
func containerName(id sandbox.ID) string {
	return "podspawn-" + strings.ReplaceAll(string(id), "_", "-")
}

func (r *Runtime) config(p sandbox.StartParams, nonce string) *container.Config {
	return &container.Config{
		Hostname:   p.Sandbox.Login(),
		User:       "0:0",
		WorkingDir: "/",
		Image:      p.ImageID,
		Entrypoint: []string{r.cfg.GuestTarget, "init"}, // and no Cmd: with an entrypoint the image's is ignored
		Env:        append(fault.Environ(), "PODSPAWN_DEADLINE="+strconv.FormatInt(p.Deadline, 10)),
		Labels:     map[string]string{LabelSandbox: string(p.Sandbox), LabelHost: r.cfg.Host, labelStart: nonce},
		// An image's health check would be run by the engine, as if from the host.
		Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
		StopSignal:  "SIGKILL",
		StopTimeout: new(int),
	}
}

func (r *Runtime) hostConfig(p sandbox.StartParams, runtime, net string) *container.HostConfig {
	const period = 100_000 // µs, the kernel's own default
	hostPIDs := 2*p.Resources.PIDs + runscPIDs
	return &container.HostConfig{
		Runtime:       runtime,
		NetworkMode:   container.NetworkMode(cmp.Or(net, "none")),
		IpcMode:       "none", // private, and no host tmpfs at /dev/shm: gVisor makes its own
		CgroupnsMode:  "private",
		RestartPolicy: container.RestartPolicy{Name: "no"},
		LogConfig:     container.LogConfig{Type: "none"},
		CapDrop:       []string{"ALL"},
		CapAdd:        capabilities(),
		SecurityOpt:   []string{"no-new-privileges"},
		OomScoreAdj:   500, // when the host runs out of memory, sandboxes go before sshd and us
		Resources: container.Resources{
			Memory:     p.Resources.Memory,
			MemorySwap: p.Resources.Memory, // memory and swap together: no swap
			// A quota, not NanoCPUs: those are refused above the host's count, where they limit nothing.
			CPUPeriod: period,
			CPUQuota:  int64(p.Resources.CPUs * period),
			PidsLimit: &hostPIDs,
			Ulimits: []*units.Ulimit{
				{Name: "core", Soft: 0, Hard: 0},
				{Name: "nofile", Soft: 4096, Hard: 65536},
				{Name: "nproc", Soft: p.Resources.PIDs, Hard: p.Resources.PIDs},
			},
		},
		Mounts: r.mounts(p),
	}
}

// mounts are the only things of the host that a sandbox sees.
//
// The three files of /etc are there because the engine would mount its own, one
// set per container and writable: a sandbox that writes into /etc/hosts fills the
// host's disk past every limit.
func (r *Runtime) mounts(p sandbox.StartParams) []mount.Mount {
	bind := func(source, target string, readOnly bool) mount.Mount {
		return mount.Mount{
			Type: mount.TypeBind, Source: source, Target: target, ReadOnly: readOnly,
			BindOptions: &mount.BindOptions{Propagation: mount.PropagationRPrivate},
		}
	}
	ms := []mount.Mount{
		bind(r.cfg.GuestPath, r.cfg.GuestTarget, true),
		bind(p.SocketDir, r.cfg.SocketTarget, false),
	}
	resolvConf := fileNoNames
	if p.Egress != sandbox.EgressNone {
		resolvConf = fileNames
	}
	for _, f := range [][2]string{{"hosts", "hosts"}, {"hostname", "hostname"}, {resolvConf, "resolv.conf"}} {
		ms = append(ms, bind(filepath.Join(r.cfg.EtcDir, f[0]), "/etc/"+f[1], true))
	}
	return ms
}

// The resolv.conf of sandboxes without and with a network. The second names one
// address for all of them, which the host's rules send on to the resolver: the
// engine's own resolver does not answer inside gVisor.
const (
	fileNoNames = "resolv.conf"
	fileNames   = "resolv.conf.public"
)

// etcFiles are the contents of the files in Config.EtcDir.
func (r *Runtime) etcFiles() map[string]string {
	files := map[string]string{
		"hosts":     "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
		"hostname":  "sandbox\n",
		fileNoNames: "# this sandbox has no network\n",
	}
	if r.cfg.Resolver.IsValid() {
		files[fileNames] = "nameserver " + r.cfg.Resolver.String() + "\noptions timeout:3 attempts:2\n"
	}
	return files
}

// writeEtc makes the files of Config.EtcDir unless they are there. An existing
// file stays as it is: replacing it would not change what running sandboxes see.
func (r *Runtime) writeEtc() error {
	if err := os.MkdirAll(r.cfg.EtcDir, 0o755); err != nil {
		return fmt.Errorf("make the sandboxes' etc directory: %w", err)
	}
	for name, text := range r.etcFiles() {
		path := filepath.Join(r.cfg.EtcDir, name)
		if b, err := os.ReadFile(path); err == nil && string(b) == text {
			continue
		}
		tmp, err := os.CreateTemp(r.cfg.EtcDir, "."+name+"-*")
		if err != nil {
			return fmt.Errorf("write the sandboxes' %s: %w", name, err)
		}
		_, werr := tmp.WriteString(text)
		err = errors.Join(werr, tmp.Chmod(0o444), tmp.Close())
		if err == nil {
			err = os.Rename(tmp.Name(), path)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("write the sandboxes' %s: %w", name, err), os.Remove(tmp.Name()))
		}
	}
	return nil
}
