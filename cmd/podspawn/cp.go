package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/agent/transfer"
	"github.com/podspawn/podspawn/sandbox"
)

type cpOptions struct{ unsafe bool }

func newCpCommand(a *app) *cobra.Command {
	var o cpOptions
	cmd := &cobra.Command{
		Use: "cp SRC DST", Short: "copy a file or a folder into a sandbox, or out of it", GroupID: groupPeople,
		Long: `Copies between this machine and a sandbox: one of SRC and DST is ID:PATH, where
PATH starts in the sandbox's workspace unless it is absolute; - is stdin or
stdout. A folder is copied with what is below it; into an existing one it goes
under its own name, as with cp -r.

What comes out of a sandbox is not trusted: nothing is written outside DST, no
link and no setuid bit is made, and what other programs execute or obey (.git,
.envrc, .vscode, .claude and the like) is left out unless --unsafe is given.`,
		Args: exact("SRC", "DST"),
		RunE: func(cmd *cobra.Command, args []string) error { return runCp(cmd.Context(), a, o, args[0], args[1]) },
	}
	cmd.Flags().BoolVar(&o.unsafe, "unsafe", false, "also take what other programs execute or obey, such as .git and .envrc")
	return cmd
}

// remote splits ID:PATH. A local path with a colon is written with a slash: ./a:b.
func remote(arg string) (ref, p string, ok bool) {
	ref, p, ok = strings.Cut(arg, ":")
	if !ok || strings.Contains(ref, "/") || ref == "" {
		return "", arg, false
	}
	if p == "" {
		p = "."
	}
	return ref, p, true
}

func runCp(ctx context.Context, a *app, o cpOptions, src, dst string) error {
	fromRef, from, out := remote(src)
	toRef, to, in := remote(dst)
	if in == out {
		return &usageError{msg: "exactly one of SRC and DST is in a sandbox", hint: "write it like podspawn cp notes.txt ID:/workspace/ or podspawn cp ID:out.log ."}
	}
	svc, err := a.connect()
	if err != nil {
		return err
	}
	if out {
		return copyOut(ctx, a, svc, o, fromRef, from, to)
	}
	return copyIn(ctx, a, svc, src, toRef, to)
}

func copyIn(ctx context.Context, a *app, svc api.API, src, ref, dst string) error {
	if src == "-" {
		w, err := svc.WriteFile(ctx, ref, api.FileWrite{Path: dst, Body: a.stdin})
		return a.copied(transfer.Result{Files: 1, Bytes: w.Size}, err)
	}
	st, err := os.Stat(src)
	if err != nil {
		return withHint(err, "SRC must exist on this machine")
	}
	name := filepath.Base(filepath.Clean(src))
	if name == "." || name == ".." || name == "/" {
		abs, err := filepath.Abs(src)
		if err != nil {
			return err
		}
		name = filepath.Base(abs)
	}
	// As cp: into a folder that is there, under its own name.
	if _, err := svc.ListFiles(ctx, ref, dst); err == nil {
		dst = path.Join(dst, name)
	} else if strings.HasSuffix(dst, "/") && sandbox.KindOf(err) == sandbox.KindNotFound {
		if !st.IsDir() {
			dst = path.Join(dst, name)
		}
	} else if k := sandbox.KindOf(err); k != sandbox.KindNotFound && k != sandbox.KindInvalidSpec {
		return err
	}
	if st.IsDir() {
		r, err := transfer.Pack(src, func(body io.Reader) error {
			_, err := svc.WriteFile(ctx, ref, api.FileWrite{Path: dst, Tar: true, Body: body})
			return err
		})
		return a.copied(r, err)
	}
	f, err := os.Open(src)
	if err != nil {
		return err
	}
	defer f.Close()
	w, err := svc.WriteFile(ctx, ref, api.FileWrite{Path: dst, Mode: uint32(st.Mode().Perm()), Body: f})
	return a.copied(transfer.Result{Files: 1, Bytes: w.Size}, err)
}

func copyOut(ctx context.Context, a *app, svc api.API, o cpOptions, ref, src, dst string) error {
	f, err := svc.OpenFile(ctx, ref, api.FileRange{Path: src})
	if err != nil {
		return err
	}
	defer f.Body.Close()
	if dst == "-" {
		if f.Length < 0 {
			return &usageError{msg: "a folder can't go to stdout", hint: "podspawn exec ID -- tar -c FOLDER writes an archive"}
		}
		_, err := io.Copy(a.stdout, f.Body)
		return err
	}
	// The name is the one that was asked for, never the sandbox's word.
	name := path.Base(path.Clean("/" + src))
	if st, err := os.Stat(dst); err == nil && st.IsDir() && name != "/" {
		dst = filepath.Join(dst, name)
	}
	if f.Length < 0 {
		r, err := transfer.Unpack(dst, f.Body, o.unsafe)
		return a.copied(r, err)
	}
	mode := os.FileMode(0o644)
	if n, err := strconv.ParseUint(f.Info.Mode, 8, 32); err == nil && n&0o111 != 0 {
		mode = 0o755
	}
	n, err := transfer.WriteFile(dst, mode, f.Body)
	return a.copied(transfer.Result{Files: 1, Bytes: n}, err)
}

// copied reports what was copied.
func (a *app) copied(r transfer.Result, err error) error {
	if err != nil {
		return err
	}
	for i, s := range r.Skipped {
		if i == 10 {
			a.say("and %d more", len(r.Skipped)-i)
			break
		}
		a.say("left out %s", oneLine(s))
	}
	if a.json {
		return a.printJSON(struct {
			Files   int      `json:"files"`
			Bytes   int64    `json:"bytes"`
			Skipped []string `json:"skipped"`
		}{r.Files, r.Bytes, append([]string{}, r.Skipped...)})
	}
	a.say("%s", fmt.Sprintf("copied %d files, %s", r.Files, formatSize(r.Bytes)))
	return nil
}
