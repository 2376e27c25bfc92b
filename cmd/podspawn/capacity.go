package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
)

// poolSettle is long enough for an ssh that follows a create.
const poolSettle = 2 * time.Second

// pool returns what the pool holds ready: a sandbox as a request gets it that asks
// for nothing in particular.
func (c *config) pool(quota sandbox.Quota) sandbox.PoolConfig {
	spec := sandbox.Spec{}.WithDefaults(c.specDefaults())
	spec.Image = cmp.Or(c.Pool.Image, spec.Image)
	return sandbox.PoolConfig{Size: c.Pool.Size, Spec: spec, Quota: quota, Settle: poolSettle}
}

// hostQuota bounds all sandboxes together.
func (c *config) hostQuota() (sandbox.Quota, error) {
	q := sandbox.Quota{Total: c.Limits.Total, Memory: c.Limits.Memory}
	if q.Memory == 0 {
		total, err := hostMemory("MemTotal")
		if err != nil {
			return sandbox.Quota{}, err
		}
		q.Memory = autoMemory * total
	}
	return q, nil
}

// availableMemory is what the kernel could give to a new program, in bytes.
func availableMemory() (int64, error) { return hostMemory("MemAvailable") }

func hostMemory(field string) (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return memoryField(f, field)
}

// memoryField reads a line "Field:   123 kB", proc_meminfo(5).
func memoryField(r io.Reader, field string) (int64, error) {
	s := bufio.NewScanner(r)
	for s.Scan() {
		name, rest, _ := strings.Cut(s.Text(), ":")
		if name != field {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 53)
		if err != nil {
			return 0, fmt.Errorf("%s of /proc/meminfo: %w", field, err)
		}
		return n << 10, nil
	}
	return 0, errors.Join(fmt.Errorf("/proc/meminfo has no %s", field), s.Err())
}

// generation names the installed guest and runtime: another file, or another
// content, is another generation.
func generation() (string, error) {
	var b strings.Builder
	for _, path := range []string{guestBinary, runscBinary} {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return "", &os.PathError{Op: "stat", Path: path, Err: err}
		}
		fmt.Fprintf(&b, "%d:%d:%d:%d.%09d ", st.Dev, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec)
	}
	return b.String(), nil
}
