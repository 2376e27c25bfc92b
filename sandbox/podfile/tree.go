package podfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/podspawn/podspawn/sandbox"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// MaxSize bounds a Podfile.
const MaxSize = 256 << 10

const (
	maxDepth  = 16
	maxNodes  = 10_000
	maxTokens = 100_000
)

// kind is what a value is in the text.
type kind int

const (
	null kind = iota
	text
	number
	boolean
	sequence
	mapping
)

func (k kind) String() string {
	return [...]string{"nothing", "text", "a number", "true or false", "a list", "a mapping"}[k]
}

// value is one value of the text. Scalars keep their spelling, so that "010" and
// 1.10 reach the field as they were written.
type value struct {
	kind   kind
	line   int    // 0: not from a text
	scalar string // text, number, boolean
	keys   []pair // mapping, in order
	items  []value
}

type pair struct {
	key   string
	line  int
	value value
}

// parseYAML reads one document of the subset that a Podfile uses.
func parseYAML(data []byte) (v value, err error) {
	defer func() {
		// The parser is foreign code reading foreign bytes.
		if p := recover(); p != nil {
			v, err = value{}, &sandbox.Error{
				Kind: sandbox.KindInvalidSpec, Msg: "podfile: not readable as YAML",
				Hint: "simplify it: one document of plain keys and values", Err: fmt.Errorf("parser panic: %v", p),
			}
		}
	}()
	tokens := tokenize(data)
	if err := checkTokens(tokens); err != nil {
		return value{}, err
	}
	file, err := parser.Parse(tokens, 0)
	if err != nil {
		return value{}, syntaxError(err)
	}
	switch len(file.Docs) {
	case 0:
		return value{kind: mapping}, nil
	case 1:
	default:
		return value{}, refuse(0, "write one document, without --- in the middle", "more than one YAML document")
	}
	b := builder{}
	v, err = b.build(file.Docs[0].Body, 0)
	if err == nil && v.kind == null {
		v.kind = mapping // comments only
	}
	return v, err
}

// checkTokens refuses, before anything recurses, what a Podfile does not need.
func checkTokens(tokens token.Tokens) error {
	if len(tokens) > maxTokens {
		return refuse(0, "make it shorter", "too many YAML tokens")
	}
	flow, entries, entryLine := 0, 0, 0
	for _, t := range tokens {
		line := t.Position.Line
		switch t.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType:
			return refuse(line, "write the value out where it is used", "YAML anchors, aliases and merge keys are not supported")
		case token.TagType, token.DirectiveType:
			return refuse(line, "leave it out", "YAML tags and directives are not supported")
		case token.MappingKeyType:
			return refuse(line, "write KEY: VALUE", "YAML complex keys are not supported")
		case token.InvalidType:
			return refuse(line, "check quotes and indentation", "not readable as YAML")
		case token.SequenceStartType, token.MappingStartType:
			if flow++; flow > maxDepth {
				return refuse(line, "flatten it", "nested more than %d deep", maxDepth)
			}
		case token.SequenceEndType, token.MappingEndType:
			flow--
		case token.SequenceEntryType:
			if line != entryLine {
				entries, entryLine = 0, line
			}
			if entries++; entries > maxDepth {
				return refuse(line, "flatten it", "nested more than %d deep", maxDepth)
			}
		}
	}
	return nil
}

// builder turns the parser's tree into values.
type builder struct{ nodes int }

func (b *builder) build(n ast.Node, depth int) (value, error) {
	if n == nil {
		return value{kind: null}, nil
	}
	line := lineOf(n)
	if depth > maxDepth {
		return value{}, refuse(line, "flatten it", "nested more than %d deep", maxDepth)
	}
	if b.nodes++; b.nodes > maxNodes {
		return value{}, refuse(line, "make it shorter", "more than %d values", maxNodes)
	}
	switch n := n.(type) {
	case *ast.NullNode, *ast.CommentGroupNode:
		return value{kind: null, line: line}, nil
	case *ast.StringNode:
		return value{kind: text, line: line, scalar: n.Value}, nil
	case *ast.LiteralNode:
		return value{kind: text, line: line, scalar: n.Value.Value}, nil
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return value{kind: number, line: line, scalar: n.GetToken().Value}, nil
	case *ast.BoolNode:
		return value{kind: boolean, line: line, scalar: n.Token.Value}, nil
	case *ast.SequenceNode:
		v := value{kind: sequence, line: line}
		for _, item := range n.Values {
			got, err := b.build(item, depth+1)
			if err != nil {
				return value{}, err
			}
			v.items = append(v.items, got)
		}
		return v, nil
	case *ast.MappingNode:
		return b.mapping(line, n.Values, depth)
	case *ast.MappingValueNode:
		return b.mapping(line, []*ast.MappingValueNode{n}, depth)
	default:
		return value{}, refuse(line, "use plain keys and values", "YAML %s is not supported", strings.ToLower(n.Type().String()))
	}
}

func (b *builder) mapping(line int, values []*ast.MappingValueNode, depth int) (value, error) {
	v := value{kind: mapping, line: line}
	seen := map[string]bool{}
	for _, entry := range values {
		key, err := b.build(entry.Key, depth+1)
		if err != nil {
			return value{}, err
		}
		if key.kind != text && key.kind != number && key.kind != boolean {
			return value{}, refuse(key.line, "write KEY: VALUE", "a key is %s", key.kind)
		}
		if seen[key.scalar] {
			return value{}, refuse(key.line, "remove one of them", "%s appears twice", quote(key.scalar))
		}
		seen[key.scalar] = true
		got, err := b.build(entry.Value, depth+1)
		if err != nil {
			return value{}, err
		}
		v.keys = append(v.keys, pair{key: key.scalar, line: key.line, value: got})
	}
	return v, nil
}

// fromObject makes a value of what encoding/json decodes into an any.
func fromObject(in any, depth int) (value, error) {
	if depth > maxDepth {
		return value{}, refuse(0, "flatten it", "nested more than %d deep", maxDepth)
	}
	switch in := in.(type) {
	case nil:
		return value{kind: null}, nil
	case string:
		return value{kind: text, scalar: in}, nil
	case bool:
		return value{kind: boolean, scalar: strconv.FormatBool(in)}, nil
	case float64:
		return value{kind: number, scalar: strconv.FormatFloat(in, 'f', -1, 64)}, nil
	case int:
		return value{kind: number, scalar: strconv.Itoa(in)}, nil
	case json.Number:
		return value{kind: number, scalar: in.String()}, nil
	case []any:
		v := value{kind: sequence}
		for _, item := range in {
			got, err := fromObject(item, depth+1)
			if err != nil {
				return value{}, err
			}
			v.items = append(v.items, got)
		}
		return v, nil
	case map[string]any:
		v := value{kind: mapping}
		for k, item := range in {
			got, err := fromObject(item, depth+1)
			if err != nil {
				return value{}, err
			}
			v.keys = append(v.keys, pair{key: k, value: got})
		}
		slices.SortFunc(v.keys, func(a, b pair) int { return strings.Compare(a.key, b.key) })
		return v, nil
	default:
		return value{}, fmt.Errorf("spec object holds a %T", in)
	}
}

func lineOf(n ast.Node) int {
	if t := n.GetToken(); t != nil && t.Position != nil {
		return t.Position.Line
	}
	return 0
}

func syntaxError(err error) error {
	var at interface {
		GetMessage() string
		GetToken() *token.Token
	}
	if !errors.As(err, &at) {
		return &sandbox.Error{Kind: sandbox.KindInvalidSpec, Msg: "podfile: not readable as YAML", Hint: "check quotes and indentation", Err: err}
	}
	line := 0
	if t := at.GetToken(); t != nil && t.Position != nil {
		line = t.Position.Line
	}
	return refuse(line, "check quotes and indentation", "not readable as YAML: %s", oneLine(at.GetMessage()))
}

// refuse is a KindInvalidSpec error at a line of the Podfile.
func refuse(line int, hint, format string, args ...any) error {
	return sandbox.Errorf(sandbox.KindInvalidSpec, hint, "%s%s", at(line), fmt.Sprintf(format, args...))
}

func at(line int) string {
	if line == 0 {
		return "podfile: "
	}
	return fmt.Sprintf("podfile line %d: ", line)
}

// quote shows foreign text bounded and without control characters.
func quote(s string) string {
	if len(s) > 60 {
		s = s[:60] + "…"
	}
	return strconv.QuoteToASCII(s)
}

// oneLine bounds a message that may repeat foreign text.
func oneLine(s string) string {
	q := quote(s)
	return q[1 : len(q)-1]
}
