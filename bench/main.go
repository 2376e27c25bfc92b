// Bench times the programs of a folder in turn, round by round, so that whatever
// else the machine does hits all of them alike; then it prints medians and the
// ratios asked for, and writes them as JSON.
//
//	bench -rounds 12 -out results.json -ratio A/B… FOLDER
//
// NAME.before and NAME.after, where there are such programs, run around each run of
// NAME and are not timed: they wait for the pool, and remove what was made.
//
// bench/run.sh says what the programs are. A case whose program fails makes the
// whole run fail: a quick failure must not look like a quick success.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// results is the content of bench/results.json; it only grows.
type results struct {
	Time    time.Time          `json:"time"`
	CPUs    int                `json:"cpus"`
	Kernel  string             `json:"kernel"`
	Rounds  int                `json:"rounds"`
	Cases   map[string]timing  `json:"cases"`
	Ratios  map[string]float64 `json:"ratios"`
	Figures map[string]float64 `json:"figures,omitempty"` // measured in another way, as given
	Warning string             `json:"warning"`
}

// timing is in milliseconds.
type timing struct {
	Median float64   `json:"median_ms"`
	Min    float64   `json:"min_ms"`
	Max    float64   `json:"max_ms"`
	All    []float64 `json:"all_ms"`
}

type ratioFlags []string

func (r *ratioFlags) String() string { return strings.Join(*r, " ") }

func (r *ratioFlags) Set(v string) error {
	if a, b, ok := strings.Cut(v, "/"); !ok || a == "" || b == "" {
		return errors.New("a ratio is CASE/CASE")
	}
	*r = append(*r, v)
	return nil
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	rounds := flags.Int("rounds", 12, "times that each case runs")
	out := flags.String("out", "", "file for the results")
	limit := flags.Duration("limit", time.Minute, "longest time of one run of a case")
	var ratios ratioFlags
	flags.Var(&ratios, "ratio", "CASE/CASE, may be repeated")
	figures := flags.String("figures", "", "program that prints NAME VALUE lines, run at the end")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 || *rounds < 1 {
		return errors.New("usage: bench [-rounds N] [-out FILE] [-ratio A/B]… FOLDER")
	}
	programs, err := filepath.Glob(filepath.Join(flags.Arg(0), "*"))
	programs = slices.DeleteFunc(programs, func(p string) bool { return filepath.Ext(p) == ".before" || filepath.Ext(p) == ".after" })
	if err != nil || len(programs) == 0 {
		return fmt.Errorf("no cases in %s", flags.Arg(0))
	}

	took := make(map[string][]float64)
	// Round 0 warms caches and is not counted.
	for round := 0; round <= *rounds; round++ {
		for _, program := range programs {
			d, err := timed(ctx, program, *limit)
			if err != nil {
				return fmt.Errorf("case %s, round %d: %w", filepath.Base(program), round, err)
			}
			if round > 0 {
				name := filepath.Base(program)
				took[name] = append(took[name], float64(d.Microseconds())/1000)
			}
		}
	}

	res, err := summarize(took, ratios)
	if err != nil {
		return err
	}
	res.Time, res.Rounds = time.Now().UTC(), *rounds
	if *figures != "" {
		if res.Figures, err = figuresOf(ctx, *figures, *limit); err != nil {
			return err
		}
	}
	printResults(stdout, res)
	if *out == "" {
		return nil
	}
	text, err := json.MarshalIndent(res, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the results: %w", err)
	}
	if err := os.WriteFile(*out, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the results: %w", err)
	}
	return nil
}

// timed runs a program to its end and tells how long that took.
func timed(ctx context.Context, program string, limit time.Duration) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := around(ctx, program+".before"); err != nil {
		return 0, err
	}
	start := time.Now()
	output, err := exec.CommandContext(ctx, program).CombinedOutput()
	took := time.Since(start)
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, strings.TrimSpace(string(output[:min(len(output), 400)])))
	}
	return took, around(ctx, program+".after")
}

// around runs what belongs to a case and is not timed, if there is such a program.
func around(ctx context.Context, program string) error {
	if _, err := os.Stat(program); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if output, err := exec.CommandContext(ctx, program).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(program), err, strings.TrimSpace(string(output[:min(len(output), 400)])))
	}
	return nil
}

// figuresOf runs a program that prints a name and a number on each line.
func figuresOf(ctx context.Context, program string, limit time.Duration) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out, err := exec.CommandContext(ctx, program).Output()
	if err != nil {
		return nil, fmt.Errorf("figures: %w", err)
	}
	figures := make(map[string]float64)
	for line := range strings.Lines(string(out)) {
		var name string
		var value float64
		if _, err := fmt.Sscan(line, &name, &value); err != nil {
			return nil, fmt.Errorf("figures: %q is no name and number", strings.TrimSpace(line))
		}
		figures[name] = value
	}
	return figures, nil
}

func summarize(took map[string][]float64, ratios []string) (results, error) {
	res := results{
		CPUs: runtime.NumCPU(), Kernel: kernel(),
		Cases: make(map[string]timing), Ratios: make(map[string]float64),
		Warning: "only the relation of cases within one run means something",
	}
	for name, all := range took {
		sorted := slices.Sorted(slices.Values(all))
		res.Cases[name] = timing{Median: median(sorted), Min: sorted[0], Max: sorted[len(sorted)-1], All: all}
	}
	for _, ratio := range ratios {
		a, b, _ := strings.Cut(ratio, "/")
		x, okX := res.Cases[a]
		y, okY := res.Cases[b]
		if !okX || !okY {
			return results{}, fmt.Errorf("ratio %s: no such case", ratio)
		}
		res.Ratios[ratio] = x.Median / y.Median
	}
	return res, nil
}

// median of a sorted, non-empty slice.
func median(sorted []float64) float64 {
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

func kernel() string {
	text, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(text))
}

func printResults(w io.Writer, res results) {
	fmt.Fprintf(w, "%-20s %10s %10s %10s\n", "case", "median ms", "min", "max")
	for _, name := range sortedKeys(res.Cases) {
		t := res.Cases[name]
		fmt.Fprintf(w, "%-20s %10.0f %10.0f %10.0f\n", name, t.Median, t.Min, t.Max)
	}
	fmt.Fprintln(w)
	for _, name := range sortedKeys(res.Ratios) {
		fmt.Fprintf(w, "%-40s %5.2f\n", name, res.Ratios[name])
	}
	for _, name := range sortedKeys(res.Figures) {
		fmt.Fprintf(w, "%-40s %8.2f\n", name, res.Figures[name])
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
