package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/docker"
)

const (
	baseImage   = "base" // the value of docker.LabelImage
	labelRecipe = "dev.podspawn.recipe"

	// minFree is what a build needs at most; all of it happens in the cache's folder.
	minFree = 1 << 30
)

// BuildOptions say where to build and what to call the result.
type BuildOptions struct {
	Suite  string    // "" is the host's own
	Cache  string    // "" is /var/cache/podspawn
	Socket string    // the engine's; "" is /var/run/docker.sock
	Name   string    // "" is podspawn/base
	Tag    string    // "" is latest
	Out    io.Writer // progress for people, line by line; nil discards
}

// Result is the image that a build made or found.
type Result struct {
	ID     string
	Ref    string
	Tar    string // the root file system in the cache
	Recipe string // digest
	Built  bool   // the root file system was made, not found in the cache
	New    bool   // the image was imported, not found in the engine
}

// Build makes the base image, or finds that it is there. Builds that share a
// cache wait for one another. A canceled or failed build leaves no partial file.
func Build(ctx context.Context, o BuildOptions) (Result, error) {
	if err := o.complete(); err != nil {
		return Result{}, err
	}
	if err := os.MkdirAll(o.Cache, 0o755); err != nil {
		return Result{}, fmt.Errorf("make the cache folder: %w", err)
	}
	unlock, err := lock(ctx, filepath.Join(o.Cache, "image.lock"), o.Out)
	if err != nil {
		return Result{}, err
	}
	defer unlock()

	images, err := docker.OpenImages(o.Socket)
	if err != nil {
		return Result{}, err
	}
	defer images.Close()

	rec := newRecipe(o.Suite, runtime.GOARCH)
	digest := rec.digest()
	res := Result{
		Ref: o.Name + ":" + o.Tag, Recipe: digest,
		Tar: filepath.Join(o.Cache, fmt.Sprintf("base-%s-%s-%s.tar", o.Suite, rec.Arch, digest[:12])),
	}
	found, ok, err := images.FindImage(ctx, res.Ref)
	if err != nil {
		return Result{}, err
	}
	if ok && found.Labels[docker.LabelImage] == baseImage && found.Labels[labelRecipe] == digest {
		fmt.Fprintf(o.Out, "%s is up to date\n", res.Ref)
		res.ID = found.ID
		return res, nil
	}
	if _, err := os.Stat(res.Tar); errors.Is(err, os.ErrNotExist) {
		if err := bootstrap(ctx, rec, res.Tar, o.Out); err != nil {
			return Result{}, err
		}
		res.Built = true
	} else if err != nil {
		return Result{}, fmt.Errorf("look for the cached file system: %w", err)
	}
	f, err := os.Open(res.Tar)
	if err != nil {
		return Result{}, fmt.Errorf("open the cached file system: %w", err)
	}
	defer f.Close()
	fmt.Fprintf(o.Out, "importing %s\n", res.Ref)
	changes := append(rec.Changes, "LABEL "+docker.LabelImage+"="+baseImage+" "+labelRecipe+"="+digest)
	if res.ID, err = images.ImportImage(ctx, f, res.Ref, changes); err != nil {
		return Result{}, err
	}
	res.New = true
	return res, nil
}

func (o *BuildOptions) complete() error {
	if o.Out == nil {
		o.Out = io.Discard
	}
	for field, value := range map[*string]string{&o.Cache: "/var/cache/podspawn", &o.Name: sandbox.DefaultImage, &o.Tag: "latest"} {
		if *field == "" {
			*field = value
		}
	}
	if o.Suite != "" {
		if !suitePattern.MatchString(o.Suite) {
			return sandbox.Errorf(sandbox.KindInvalidSpec, "give a release's name, like bookworm or noble", "%.40q is no release", o.Suite)
		}
		return nil
	}
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return fmt.Errorf("find out the host's release: %w", err)
	}
	defer f.Close()
	o.Suite, err = hostSuite(f)
	return err
}

// bootstrap makes the root file system. mmdebstrap writes next to the final name,
// which appears only when it is complete.
func bootstrap(ctx context.Context, rec recipe, tar string, out io.Writer) (err error) {
	if os.Geteuid() != 0 {
		return sandbox.Errorf(sandbox.KindUnavailable, "run it with sudo", "building the base image needs root")
	}
	program, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return sandbox.Errorf(sandbox.KindUnavailable, "apt-get install mmdebstrap, or make up, which does it",
			"mmdebstrap is not installed")
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(tar), &fs); err == nil && fs.Bavail*uint64(fs.Bsize) < minFree {
		return diskFull(filepath.Dir(tar), nil)
	}
	work, err := os.MkdirTemp(filepath.Dir(tar), ".build-")
	if err != nil {
		return fmt.Errorf("make a folder to build in: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	partial := filepath.Join(work, "root.tar")

	args := []string{"--variant=minbase", "--format=tar", "--include=" + strings.Join(rec.Packages, ",")}
	for _, d := range rec.Dpkg {
		args = append(args, "--dpkgopt="+d)
	}
	for _, a := range hostAptOptions(ctx) {
		args = append(args, "--aptopt="+a)
	}
	args = append(args, "--customize-hook="+rec.Finish, rec.Suite, partial)
	args = append(args, sources("")...)

	fmt.Fprintf(out, "building the %s file system from the host's package sources; this takes a minute or two\n", rec.Suite)
	began := time.Now()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root", "TMPDIR=" + work}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// mmdebstrap unmounts and cleans up on INT; its children get it too.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = 30 * time.Second
	var said tail
	cmd.Stdout = io.MultiWriter(out, &said)
	cmd.Stderr = cmd.Stdout
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("build the file system: %w", ctx.Err())
		}
		return explain(err, said.String(), filepath.Dir(tar))
	}
	if err := syncFile(partial); err != nil {
		return err
	}
	if err := os.Rename(partial, tar); err != nil {
		return fmt.Errorf("keep the file system: %w", err)
	}
	fmt.Fprintf(out, "built in %s\n", time.Since(began).Round(time.Second))
	return nil
}

// hostAptOptions carry over how this host reaches its package sources. The recipe
// takes them out again at its end.
func hostAptOptions(ctx context.Context) []string {
	text, err := exec.CommandContext(ctx, "apt-config", "dump").Output()
	if err != nil {
		return nil // without apt-config there is nothing to carry over
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(strings.TrimSpace(line), ";")
		name, _, _ := strings.Cut(line, " ")
		switch strings.ToLower(name) {
		case "acquire::http::proxy", "acquire::https::proxy", "acquire::check-valid-until", "acquire::check-date":
			out = append(out, line)
		}
	}
	return out
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("keep the file system: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Chmod(0o644), f.Close()); err != nil {
		return fmt.Errorf("keep the file system: %w", err)
	}
	return nil
}

// explain turns what mmdebstrap said last into a remedy.
func explain(err error, said, dir string) error {
	low := strings.ToLower(said)
	has := func(phrases ...string) bool {
		for _, p := range phrases {
			if strings.Contains(low, p) {
				return true
			}
		}
		return false
	}
	private := fmt.Errorf("mmdebstrap: %w: %s", err, said)
	switch {
	case has("no space left"):
		return diskFull(dir, private)
	case has("temporary failure resolving", "could not resolve", "could not connect", "connection failed", "unable to connect",
		"connection timed out", "failed to fetch"):
		return &sandbox.Error{
			Kind: sandbox.KindUnavailable, Err: private, Msg: "the package sources cannot be reached",
			Hint: "check that apt-get update works on this host, then build again",
		}
	case has("unable to locate package", "no installation candidate", "does not have a release file"):
		return &sandbox.Error{
			Kind: sandbox.KindUnavailable, Err: private, Msg: "the host's package sources lack what the base image needs",
			Hint: "they must be those of the release that is built; on Ubuntu, enable universe",
		}
	default:
		return &sandbox.Error{
			Kind: sandbox.KindInternal, Err: private, Msg: "mmdebstrap could not build the base image",
			Hint: "the lines above say why",
		}
	}
}

func diskFull(dir string, err error) error {
	return &sandbox.Error{
		Kind: sandbox.KindCapacity, Err: err, Msg: "there is too little space in " + dir + " for the base image",
		Hint: "free 1 GiB there and build again",
	}
}

// tail keeps the last few kilobytes written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	const keep = 4 << 10
	t.b = append(t.b, p...)
	if len(t.b) > keep {
		t.b = bytes.Clone(t.b[len(t.b)-keep:])
	}
	return len(p), nil
}

func (t *tail) String() string { return strings.TrimSpace(string(t.b)) }
