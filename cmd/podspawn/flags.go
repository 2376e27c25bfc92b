package main

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/podfile"
)

// durationFlag reads "90s" or seconds.
type durationFlag struct {
	value time.Duration
	set   bool
}

func (d *durationFlag) Type() string { return "D" }

func (d *durationFlag) String() string {
	if !d.set {
		return ""
	}
	return d.value.String()
}

// Set is called by pflag.
func (d *durationFlag) Set(text string) error {
	v, err := parseDuration(text)
	if err != nil {
		return err
	}
	d.value, d.set = v, true
	return nil
}

func (d *durationFlag) api() api.Duration { return api.Duration(d.value) }

// pointer is nil when the flag was not given.
func (d *durationFlag) pointer() *api.Duration {
	if !d.set {
		return nil
	}
	v := d.api()
	return &v
}

// parseLabels reads "k=v" texts.
func parseLabels(texts []string) (map[string]string, error) {
	if len(texts) == 0 {
		return nil, nil
	}
	labels := make(map[string]string, len(texts))
	for _, text := range texts {
		k, v, ok := strings.Cut(text, "=")
		if !ok || k == "" {
			return nil, &usageError{msg: fmt.Sprintf("--label %s is not of the form key=value", text), hint: "write it like --label team=web"}
		}
		if _, twice := labels[k]; twice {
			return nil, &usageError{msg: fmt.Sprintf("--label %s is given twice", k), hint: "give each label once"}
		}
		labels[k] = v
	}
	return labels, nil
}

// readPodfile reads the text that -f names; "-" is stdin.
func (a *app) readPodfile(path string) (string, error) {
	var b []byte
	var err error
	if path == "-" {
		b, err = readAtMost(a.stdin, "the Podfile on stdin", podfile.MaxSize)
	} else {
		b, err = podfile.ReadFile(path)
	}
	if err != nil {
		return "", err
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return "", &usageError{msg: fmt.Sprintf("the Podfile %s is empty", path), hint: "write at least an image into it, or leave -f out"}
	}
	return string(b), nil
}

// findPodfile returns the Podfile of the current folder, "" when it has none.
func findPodfile() (string, error) {
	path, err := podfile.Find(".")
	if err != nil && sandbox.KindOf(err) == sandbox.KindNotFound {
		return "", nil
	}
	return path, err
}
