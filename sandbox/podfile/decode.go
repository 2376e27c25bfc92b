package podfile

import (
	"bytes"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/podspawn/podspawn/sandbox"
)

// field reads one key's value into the spec.
type field func(s *sandbox.Spec, path string, v value) error

// keys are the Podfile's.
func keys() map[string]field {
	return map[string]field{
		"name":      str(func(s *sandbox.Spec) *string { return &s.Name }),
		"image":     str(func(s *sandbox.Spec) *string { return &s.Image }),
		"user":      str(func(s *sandbox.Spec) *string { return &s.User }),
		"shell":     str(func(s *sandbox.Spec) *string { return &s.Shell }),
		"workspace": str(func(s *sandbox.Spec) *string { return &s.Workspace }),
		"env":       env,
		"resources": section(map[string]field{
			"cpus":   cpus,
			"memory": size(func(s *sandbox.Spec) *int64 { return &s.Resources.Memory }),
			"disk":   size(func(s *sandbox.Spec) *int64 { return &s.Resources.Disk }),
			"pids":   integer(func(s *sandbox.Spec) *int64 { return &s.Resources.PIDs }),
		}),
		"network": section(map[string]field{"egress": egress}),
		"ssh": section(map[string]field{
			"forwarding": flag(func(s *sandbox.Spec) *bool { return &s.SSH.Forwarding }),
			"agent":      flag(func(s *sandbox.Spec) *bool { return &s.SSH.Agent }),
			"x11":        flag(func(s *sandbox.Spec) *bool { return &s.SSH.X11 }),
			"sftp":       flag(func(s *sandbox.Spec) *bool { return &s.SSH.SFTP }),
		}),
		"lifecycle": section(map[string]field{
			"ttl":          duration(func(s *sandbox.Spec) *int64 { return (*int64)(&s.Lifecycle.TTL) }),
			"idle_timeout": duration(func(s *sandbox.Spec) *int64 { return (*int64)(&s.Lifecycle.IdleTimeout) }),
			"grace":        duration(func(s *sandbox.Spec) *int64 { return (*int64)(&s.Lifecycle.Grace) }),
			"on_exit":      str(func(s *sandbox.Spec) *string { return (*string)(&s.Lifecycle.OnExit) }),
		}),
	}
}

// later are keys of the contract that this version refuses. An empty one is
// refused too: it would mean something else once the key works.
var later = [...]string{
	"base", "extends", "packages", "packages!", "repos", "dotfiles", "services", "build", "build_inputs",
	"on_create", "on_start", "ports", "volumes", "secrets",
}

func decode(v value, base sandbox.Spec) (sandbox.Spec, error) {
	s := base
	s.Env = maps.Clone(base.Env)
	if err := section(keys())(&s, "", v); err != nil {
		return sandbox.Spec{}, err
	}
	return s, nil
}

// section reads a mapping whose keys are known.
func section(known map[string]field) field {
	return func(s *sandbox.Spec, path string, v value) error {
		if v.kind != mapping {
			if path == "" {
				return refuse(v.line, "write KEY: VALUE, for example image: podspawn/base", "it is %s, not a mapping of keys", v.kind)
			}
			return refuse(v.line, "its keys are "+list(known), "%s is %s, not a mapping", path, v.kind)
		}
		for _, p := range v.keys {
			name := p.key
			if path != "" {
				name = path + "." + p.key
			}
			read, ok := known[p.key]
			if !ok {
				return unknown(path, p, known)
			}
			if err := read(s, name, p.value); err != nil {
				return err
			}
		}
		return nil
	}
}

func unknown(path string, p pair, known map[string]field) error {
	where, prefix := "", ""
	if path != "" {
		where, prefix = " in "+path, path+"."
	}
	if path == "" && slices.Contains(later[:], p.key) {
		return refuse(p.line, "leave it out; build what it would do into the image, or do it in a session", "%s: not supported yet by this version", p.key)
	}
	hint := "the keys" + where + " are " + list(known)
	if near := nearest(p.key, known); near != "" {
		hint = "did you mean " + prefix + near + "?"
	}
	return sandbox.Errorf(sandbox.KindUnknownField, hint, "%sunknown key %s%s", at(p.line), quote(p.key), where)
}

func list(known map[string]field) string {
	return strings.Join(slices.Sorted(maps.Keys(known)), ", ")
}

// scalar returns the spelling of a value that is neither empty nor nested.
func scalar(path string, v value) (string, error) {
	switch v.kind {
	case text, number, boolean:
		return v.scalar, nil
	case null:
		return "", refuse(v.line, `give it one, leave the key out, or write "" for an empty text`, "%s has no value", path)
	default:
		return "", refuse(v.line, "write one value", "%s is %s, not a value", path, v.kind)
	}
}

func str(at func(*sandbox.Spec) *string) field {
	return func(s *sandbox.Spec, path string, v value) error {
		got, err := scalar(path, v)
		*at(s) = got
		return err
	}
}

func flag(at func(*sandbox.Spec) *bool) field {
	return func(s *sandbox.Spec, path string, v value) error {
		if v.kind != boolean {
			return refuse(v.line, "use true or false", "%s is %s, not true or false", path, v.kind)
		}
		*at(s) = strings.EqualFold(v.scalar, "true")
		return nil
	}
}

// read returns a field that parse understands the spelling of.
func read[T any](at func(*sandbox.Spec) *T, parse func(string) (T, bool), what, hint string) field {
	return func(s *sandbox.Spec, path string, v value) error {
		text, err := scalar(path, v)
		if err != nil {
			return err
		}
		got, ok := parse(text)
		if !ok {
			return refuse(v.line, hint, "%s: %s is no %s", path, quote(text), what)
		}
		*at(s) = got
		return nil
	}
}

func size(at func(*sandbox.Spec) *int64) field {
	return read(at, parseSize, "size", "write it like 512m, 2g or as bytes")
}

func duration(at func(*sandbox.Spec) *int64) field {
	return read(at, parseDuration, "duration", "write it like 90s, 30m or 2h, or as seconds")
}

func integer(at func(*sandbox.Spec) *int64) field {
	return read(at, func(t string) (int64, bool) {
		n, err := strconv.ParseInt(t, 10, 64)
		return n, err == nil && n >= 0
	}, "whole number", "write it like 512")
}

func cpus(s *sandbox.Spec, path string, v value) error {
	return read(func(s *sandbox.Spec) *float64 { return &s.Resources.CPUs }, parseDecimal,
		"number of cores", "write it like 2 or 0.5")(s, path, v)
}

func egress(s *sandbox.Spec, path string, v value) error {
	if v.kind == sequence {
		return sandbox.Errorf(sandbox.KindEgressDenied, "use egress: public, which reaches every public address, or none",
			"%s%s: a list of hosts is not supported yet by this version", at(v.line), path)
	}
	return str(func(s *sandbox.Spec) *string { return (*string)(&s.Network.Egress) })(s, path, v)
}

func env(s *sandbox.Spec, path string, v value) error {
	if v.kind != mapping {
		return refuse(v.line, "write NAME: VALUE lines under it", "%s is %s, not a mapping", path, v.kind)
	}
	if s.Env == nil && len(v.keys) > 0 {
		s.Env = map[string]string{}
	}
	for _, p := range v.keys {
		got, err := scalar(path+"."+oneLine(p.key), p.value)
		if err != nil {
			return err
		}
		s.Env[p.key] = got
	}
	return nil
}

// checkText refuses bytes that no editor writes into YAML, before the lexer sees them.
func checkText(data []byte) error {
	if i := bytes.IndexByte(data, 0); i >= 0 {
		return refuse(1+bytes.Count(data[:i], []byte("\n")), "write it with a text editor", "it holds a NUL byte")
	}
	if !utf8.Valid(data) {
		return refuse(0, "save it as UTF-8", "it is not UTF-8")
	}
	return nil
}
