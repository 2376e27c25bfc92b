package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func program(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestRunWritesMediansAndRatios(t *testing.T) {
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "results.json")
	count := filepath.Join(t.TempDir(), "count")
	program(t, dir, "quick", "echo q >>"+count)
	program(t, dir, "slow", "echo s >>"+count+"; sleep 0.1")

	var stdout bytes.Buffer
	if err := run(t.Context(), []string{"-rounds", "2", "-out", out, "-ratio", "slow/quick", dir}, &stdout); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var res results
	if err := json.Unmarshal(text, &res); err != nil {
		t.Fatal(err)
	}
	if got := len(res.Cases["slow"].All); got != 2 {
		t.Errorf("slow was counted %d times, want 2", got)
	}
	if got := res.Cases["slow"].Median; got < 100 {
		t.Errorf("median of slow = %v ms, want at least 100", got)
	}
	if got := res.Ratios["slow/quick"]; got <= 1 {
		t.Errorf("slow/quick = %v, want more than 1", got)
	}
	order, err := os.ReadFile(count)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(strings.Fields(string(order)), ""); got != "qsqsqs" {
		t.Errorf("order = %q, want the cases in turn, with a round to warm up", got)
	}
}

func TestRunFailsWhenACaseFails(t *testing.T) {
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "results.json")
	program(t, dir, "broken", "echo no such sandbox; exit 3")
	err := run(t.Context(), []string{"-out", out, dir}, &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), "no such sandbox") {
		t.Errorf("run = %v, want an error with the case's output", err)
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("results were written")
	}
}

func TestWhatIsAroundACaseIsNotTimed(t *testing.T) {
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "results.json")
	count := filepath.Join(t.TempDir(), "count")
	program(t, dir, "a.before", "sleep 0.3; echo b >>"+count)
	program(t, dir, "a", "echo a >>"+count)
	program(t, dir, "a.after", "echo c >>"+count)
	figures := filepath.Join(t.TempDir(), "figures")
	program(t, filepath.Dir(figures), "figures", "echo idle_mib 23.5; echo login_ms 7")
	if err := run(t.Context(), []string{"-rounds", "1", "-out", out, "-figures", figures, dir}, &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var res results
	if err := json.Unmarshal(text, &res); err != nil {
		t.Fatal(err)
	}
	if got := res.Cases["a"].Max; len(res.Cases) != 1 || got >= 300 {
		t.Errorf("cases %v, a took %v ms, want a alone without the pause before it", res.Cases, got)
	}
	if res.Figures["idle_mib"] != 23.5 || res.Figures["login_ms"] != 7 {
		t.Errorf("figures = %v, want those printed", res.Figures)
	}
	order, err := os.ReadFile(count)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(strings.Fields(string(order)), ""); got != "bacbac" {
		t.Errorf("order = %q, want before, case, after", got)
	}
}

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		in   []float64
		want float64
	}{{[]float64{3}, 3}, {[]float64{1, 3}, 2}, {[]float64{1, 2, 9}, 2}} {
		if got := median(test.in); got != test.want {
			t.Errorf("median(%v) = %v, want %v", test.in, got, test.want)
		}
	}
}
