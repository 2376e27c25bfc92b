package main

import (
	"strings"
	"testing"

	"github.com/podspawn/podspawn/sandbox"
)

func TestMemoryField(t *testing.T) {
	const text = "MemTotal:       24576 kB\nMemFree:  1 kB\nMemAvailable:   2048 kB\nHugePages_Total:       0\nOdd: x kB\n"
	for name, c := range map[string]struct {
		field string
		want  int64
		fails bool
	}{
		"first":     {"MemTotal", 24576 << 10, false},
		"later":     {"MemAvailable", 2048 << 10, false},
		"missing":   {"SwapTotal", 0, true},
		"no number": {"Odd", 0, true},
		"part":      {"Mem", 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := memoryField(strings.NewReader(text), c.field)
			if got != c.want || (err != nil) != c.fails {
				t.Errorf("memoryField(%s) = %d, %v, want %d", c.field, got, err, c.want)
			}
		})
	}
}

func TestAutoMemoryPromisesTheHostsTwice(t *testing.T) {
	total, err := hostMemory("MemTotal")
	if err != nil {
		t.Fatal(err)
	}
	c := defaultConfig()
	q, err := c.hostQuota()
	if err != nil || q.Memory != 2*total || q.Total != c.Limits.Total {
		t.Errorf("quota = %+v, %v, want %d bytes and %d sandboxes", q, err, 2*total, c.Limits.Total)
	}
	c.Limits.Memory = 1 << 30
	if q, err = c.hostQuota(); err != nil || q.Memory != 1<<30 {
		t.Errorf("quota = %+v, %v, want what the configuration says", q, err)
	}
}

func TestPoolHoldsWhatARequestForNothingInParticularGets(t *testing.T) {
	c := defaultConfig()
	c.Defaults.Memory = 3 << 30
	p := c.pool(sandbox.Quota{})
	if p.Size != 2 || p.Spec.Image != c.Defaults.Image || p.Spec.Resources.Memory != 3<<30 {
		t.Errorf("pool = %+v, want two of the defaults", p)
	}
	c.Pool.Image = "podspawn/other"
	if got := c.pool(sandbox.Quota{}).Spec.Image; got != "podspawn/other" {
		t.Errorf("image = %q, want pool.image", got)
	}
}
