package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/audit"
	"github.com/podspawn/podspawn/sandbox/sqlstore"
)

type auditOptions struct {
	follow, verify bool
	sandbox        string
	file           string
}

const (
	auditPoll = 250 * time.Millisecond // how often follow looks
	auditLag  = 3 * time.Second        // the file is written a moment after the state
)

func newAuditCommand(a *app) *cobra.Command {
	var o auditOptions
	cmd := &cobra.Command{
		Use: "audit", Short: "print the audit log, follow it, or check that nobody changed it", GroupID: groupAdmin, Args: exact(),
		Long: `Print the audit log, as root on the host; it needs no running service. With
--verify nothing is printed: each line is checked against its hash and the line
before it, and the last one against the state, so that an edit, a removal, a
reordering and a cut end are found. The exit status says whether one was.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.verify && (o.follow || o.sandbox != "") {
				return usagef(cmd, "--verify goes with neither --follow nor --sandbox")
			}
			if o.verify {
				return runAuditVerify(cmd.Context(), a, &o)
			}
			return runAudit(cmd.Context(), a, &o)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.follow, "follow", "f", false, "go on with what is written from now on")
	f.BoolVar(&o.verify, "verify", false, "check the log, against the state too")
	f.StringVar(&o.sandbox, "sandbox", "", "only what concerns this sandbox: its `ID` or login")
	f.StringVar(&o.file, "file", auditFile, "`FILE` to read")
	return cmd
}

func runAuditVerify(ctx context.Context, a *app, o *auditOptions) error {
	c, err := a.loadConfig(nil)
	if err != nil {
		return err
	}
	state := filepath.Join(c.StateDir, "state.db")
	if _, err := os.Stat(state); err != nil { // Open would make one
		return withHint(fmt.Errorf("read the state: %w", err), "run it as root on the host")
	}
	store, err := sqlstore.Open(ctx, state)
	if err != nil {
		return err
	}
	defer store.Close() // nothing was written
	deadline := time.Now().Add(auditLag)
	for {
		tip, err := verifyFile(o.file)
		if err == nil {
			err = compareTip(ctx, store, tip)
		}
		switch {
		case err == nil:
			if a.json {
				return a.printJSON(map[string]any{"ok": true, "events": tip.Seq, "hash": tip.Hash})
			}
			_, err := fmt.Fprintf(a.stdout, "%d events, unbroken, as in the state; the last hash is %s\n", tip.Seq, tip.Hash)
			return err
		case time.Now().After(deadline) || !errors.Is(err, errBehind):
			return withHint(err, "the events are in the state too; compare the file with a copy kept elsewhere")
		}
		t := time.NewTimer(auditPoll)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
	}
}

// errBehind: the file ends before the state does.
var errBehind = errors.New("the end of the audit log is missing")

func verifyFile(path string) (audit.Tip, error) {
	f, err := os.Open(path)
	if err != nil {
		return audit.Tip{}, withHint(fmt.Errorf("read the audit log: %w", err), "run it as root on the host")
	}
	defer f.Close() // nothing was written
	tip, err := audit.Verify(f)
	if err != nil {
		return tip, fmt.Errorf("%s: %w", path, err)
	}
	return tip, nil
}

// compareTip checks that the state has the log's last event and none after it.
func compareTip(ctx context.Context, store *sqlstore.Store, tip audit.Tip) error {
	evs, err := store.Events(ctx, max(tip.Seq-1, 0), 2)
	if err != nil {
		return err
	}
	if tip.Seq > 0 {
		if len(evs) == 0 || evs[0].Seq != tip.Seq || evs[0].Hash != tip.Hash {
			return fmt.Errorf("%w: the state has another event %d", sandbox.ErrBrokenChain, tip.Seq)
		}
		evs = evs[1:]
	}
	if len(evs) > 0 {
		return fmt.Errorf("%w: it ends with event %d, and the state goes on", errBehind, tip.Seq)
	}
	return nil
}

func runAudit(ctx context.Context, a *app, o *auditOptions) error {
	var only sandbox.ID
	if o.sandbox != "" {
		id, err := sandbox.ParseLogin(o.sandbox)
		if err != nil {
			if id, err = sandbox.ParseID(o.sandbox); err != nil {
				return &usageError{msg: fmt.Sprintf("--sandbox %s is neither an id nor a login", o.sandbox), hint: "write it like sbx_… or sbx-…"}
			}
		}
		only = id
	}
	f, err := os.Open(o.file)
	if err != nil {
		return withHint(fmt.Errorf("read the audit log: %w", err), "run it as root on the host")
	}
	defer f.Close() // nothing was written
	in := bufio.NewReaderSize(f, sandbox.MaxEventLine+1)
	var torn string // the beginning of a line that is being written
	for {
		line, err := in.ReadString('\n')
		switch {
		case err == nil:
			if err := a.printEvent(torn+line, only); err != nil {
				return err
			}
			torn = ""
			continue
		case !errors.Is(err, io.EOF):
			return fmt.Errorf("read the audit log: %w", err)
		case !o.follow:
			return nil
		}
		if torn += line; len(torn) > sandbox.MaxEventLine {
			return fmt.Errorf("%w: a line is too long", sandbox.ErrBrokenChain)
		}
		t := time.NewTimer(auditPoll)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// printEvent prints one line of the log, for people or as it is.
func (a *app) printEvent(line string, only sandbox.ID) error {
	line = strings.TrimSuffix(line, "\n")
	e, err := sandbox.ParseLine([]byte(line))
	if err != nil {
		return withHint(err, "podspawn audit --verify says where")
	}
	if only != "" && e.Sandbox != only {
		return nil
	}
	if a.json {
		_, err := fmt.Fprintln(a.stdout, line)
		return err
	}
	words := []string{e.Time.Format(time.RFC3339), string(e.Event)}
	add := func(name, value string) {
		if value != "" {
			words = append(words, name+"="+oneLine(value))
		}
	}
	add("tenant", e.Tenant)
	add("subject", e.Subject)
	add("sandbox", string(e.Sandbox))
	add("token", e.Token)
	if e.Serial != 0 {
		add("serial", strconv.FormatUint(e.Serial, 10))
	}
	add("session", e.Session)
	add("source", e.Source)
	add("reason", e.Reason)
	for _, k := range slices.Sorted(maps.Keys(e.Detail)) {
		add(k, e.Detail[k])
	}
	_, err = fmt.Fprintln(a.stdout, strings.Join(words, " "))
	return err
}
