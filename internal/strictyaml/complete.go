package strictyaml

import (
	"fmt"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v4"
)

// DecodeComplete is Decode of a file in which nothing may be left out: every key that v knows
// must stand in the file, at every depth, but for fields whose tag says omitempty. It is for
// files in which a forgotten line would otherwise be a decision.
func DecodeComplete(name string, data []byte, v any) error {
	if err := Decode(name, data, v); err != nil {
		return err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return &Error{name, plain(err.Error())}
	}
	if len(doc.Content) != 1 {
		return &Error{name, "the file is empty"}
	}
	if problem := missing(doc.Content[0], reflect.TypeOf(v), ""); problem != "" {
		return &Error{name, problem}
	}
	return nil
}

// missing names the first key of type t that node lacks, "" if there is none. node was
// decoded into a t before, so that their shapes agree.
func missing(node *yaml.Node, t reflect.Type, path string) string {
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t.Kind() == reflect.Struct && node.Kind == yaml.MappingNode:
		return missingField(node, t, path)
	case t.Kind() == reflect.Struct && node.Tag == "!!null":
		return fmt.Sprintf("line %d: %q has no value", node.Line, strings.TrimSuffix(path, "."))
	case t.Kind() == reflect.Slice && node.Kind == yaml.SequenceNode:
		for _, item := range node.Content {
			if problem := missing(item, t.Elem(), path); problem != "" {
				return problem
			}
		}
	case t.Kind() == reflect.Map && node.Kind == yaml.MappingNode:
		for i := 0; i+1 < len(node.Content); i += 2 {
			if problem := missing(node.Content[i+1], t.Elem(), path+node.Content[i].Value+"."); problem != "" {
				return problem
			}
		}
	case node.Tag == "!!null":
		return fmt.Sprintf("line %d: %q has no value; an empty list is []", node.Line, strings.TrimSuffix(path, "."))
	}
	return ""
}

func missingField(node *yaml.Node, t reflect.Type, path string) string {
	values := map[string]*yaml.Node{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		values[node.Content[i].Value] = node.Content[i+1]
	}
	for i := range t.NumField() {
		key, options, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		if options == "inline" {
			if problem := missingField(node, t.Field(i).Type, path); problem != "" {
				return problem
			}
			continue
		}
		if key == "" || key == "-" {
			continue
		}
		value, there := values[key]
		switch {
		case there:
			if problem := missing(value, t.Field(i).Type, path+key+"."); problem != "" {
				return problem
			}
		case !strings.Contains(options, "omitempty"):
			return fmt.Sprintf("line %d: %q is missing", node.Line, path+key)
		}
	}
	return ""
}
