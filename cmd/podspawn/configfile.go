package main

import (
	"fmt"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/podspawn/podspawn/agent/api"
)

// applyFile lays the YAML in text over the configuration. It walks the syntax
// tree and not a struct, so that each complaint has a line and a typing error
// its nearest key.
func (c *config) applyFile(path string, text []byte) error {
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		first, _, _ := strings.Cut(strings.TrimSpace(err.Error()), "\n")
		return configError(path, fmt.Errorf("no valid YAML: %s", first))
	}
	if len(file.Docs) > 1 {
		return configError(path, fmt.Errorf("more than one document"))
	}
	r := configReader{path: path, known: make(map[string]setting), seen: make(map[string]bool)}
	for _, s := range c.settings() {
		r.known[s.key] = s
	}
	for _, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		if err := r.section("", doc.Body); err != nil {
			return err
		}
	}
	for key := range r.seen {
		c.sources[key] = "file " + path
	}
	return nil
}

type configReader struct {
	path  string
	known map[string]setting
	seen  map[string]bool
}

func (r *configReader) section(prefix string, node ast.Node) error {
	var entries []*ast.MappingValueNode
	switch n := node.(type) {
	case *ast.MappingNode:
		entries = n.Values
	case *ast.MappingValueNode:
		entries = []*ast.MappingValueNode{n}
	case *ast.NullNode, *ast.CommentGroupNode:
		return nil
	default:
		return r.errorf(node, "%s must be a mapping of keys to values", strings.TrimSuffix("the section "+prefix, "."))
	}
	for _, e := range entries {
		key := prefix + e.Key.GetToken().Value
		if err := r.entry(key, e); err != nil {
			return err
		}
	}
	return nil
}

func (r *configReader) entry(key string, e *ast.MappingValueNode) error {
	for _, later := range laterKeys {
		if key == later || strings.HasPrefix(key, later+".") {
			return r.errorf(e.Key, "%s is not supported in this version yet", key)
		}
	}
	s, leaf := r.known[key]
	if !leaf {
		if !r.isSection(key) {
			return r.unknown(key, e.Key)
		}
		return r.section(key+".", e.Value)
	}
	if r.seen[key] {
		return r.errorf(e.Key, "%s is set twice", key)
	}
	r.seen[key] = true
	switch e.Value.(type) {
	case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
	default:
		return r.errorf(e.Value, "%s must be one plain value", key)
	}
	if err := s.set(e.Value.GetToken().Value); err != nil {
		return r.errorf(e.Value, "%s: %v", key, err)
	}
	return nil
}

func (r *configReader) isSection(key string) bool {
	for k := range r.known {
		if strings.HasPrefix(k, key+".") {
			return true
		}
	}
	return false
}

func (r *configReader) unknown(key string, node ast.Node) error {
	parent, _ := cutLast(key)
	var candidates []string
	for k := range r.known {
		section, _ := cutLast(k)
		if section == parent {
			candidates = append(candidates, k)
		}
		if top, _, ok := strings.Cut(k, "."); ok && parent == "" {
			candidates = append(candidates, top)
		}
	}
	if near := api.Nearest(key, candidates); near != "" {
		return r.errorf(node, "unknown key %q; did you mean %s?", key, near)
	}
	return r.errorf(node, "unknown key %q", key)
}

func cutLast(key string) (parent, name string) {
	i := strings.LastIndexByte(key, '.')
	return key[:max(i, 0)], key[i+1:]
}

func (r *configReader) errorf(node ast.Node, format string, args ...any) error {
	where := r.path
	if t := node.GetToken(); t != nil && t.Position != nil {
		where = fmt.Sprintf("%s:%d", r.path, t.Position.Line)
	}
	return configError(where, fmt.Errorf(format, args...))
}
