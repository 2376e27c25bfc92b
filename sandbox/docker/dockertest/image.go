package dockertest

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/podspawn/podspawn/sandbox/docker"
)

// ImportBusybox makes an image NAME:TAG with a static busybox as every common
// command and a user dev (1000), and returns its id.
func (d *Daemon) ImportBusybox(t testing.TB, ref string, changes ...string) string {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		missing(t, "docker", "busybox-static is not installed")
	}
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	images, err := docker.OpenImages(d.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer images.Close()
	id, err := images.ImportImage(context.Background(), bytes.NewReader(busyboxTar(t, body)), ref,
		append([]string{"ENV PATH=/bin"}, changes...))
	if err != nil {
		t.Fatalf("import busybox: %v", err)
	}
	return id
}

func busyboxTar(t testing.TB, busybox []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	add := func(h tar.Header, body []byte) {
		h.Size = int64(len(body))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin/", "etc/", "proc/", "sys/", "dev/", "home/", "home/dev/", "root/"} {
		h := tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}
		if dir == "home/dev/" {
			h.Uid, h.Gid = 1000, 1000
		}
		add(h, nil)
	}
	add(tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, nil)
	add(tar.Header{Name: "bin/busybox", Mode: 0o755}, busybox)
	for _, applet := range strings.Fields(`cat chmod chown cp dd dmesg echo env false grep head hostname id kill ls mkdir
		mkfifo mknod mount nc nproc printf ps pwd readlink rm sh sleep stat stty tail test touch true tty umount uname unshare wc whoami`) {
		add(tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
	}
	add(tar.Header{Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0::/root:/bin/sh\ndev:x:1000:1000::/home/dev:/bin/sh\n"))
	add(tar.Header{Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\ndev:x:1000:\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// mountsUnder returns the mount points below dir, deepest first.
func mountsUnder(dir string) []string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			out = append(out, f[4])
		}
	}
	slices.SortFunc(out, func(a, b string) int { return len(b) - len(a) })
	return out
}
