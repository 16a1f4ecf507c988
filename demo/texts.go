package demo

import (
	"os"

	"go.yaml.in/yaml/v4"
)

// The files below are such as a person would write; meshnode decodes them strictly.

// genesisSpec is the text of genesis.yaml.
type genesisSpec struct {
	Name          string              `yaml:"name"`
	Origin        string              `yaml:"origin"`
	Store         string              `yaml:"store"`
	AllowSim      bool                `yaml:"allow_sim"`
	Organisations []genesisOrg        `yaml:"organisations"`
	Kinds         map[string][]string `yaml:"kinds"`
	Roots         map[string][]string `yaml:"roots"`
	Entries       []entrySpec         `yaml:"entries"`
}

type genesisOrg struct {
	ID    string       `yaml:"id"`
	Roles []string     `yaml:"roles,omitempty"`
	Keys  []genesisKey `yaml:"keys"`
}

type genesisKey struct {
	Role   string `yaml:"role"`
	Public string `yaml:"public"`
}

type entrySpec struct {
	Kind        string   `yaml:"kind"`
	Measurement string   `yaml:"measurement"`
	Roles       []string `yaml:"roles,omitempty"`
}

// nodeConfig is the text of a node's config.yaml.
type nodeConfig struct {
	Genesis      string            `yaml:"genesis"`
	Organisation string            `yaml:"organisation"`
	Node         string            `yaml:"node"`
	Roles        []string          `yaml:"roles"`
	Data         string            `yaml:"data"`
	Listen       []string          `yaml:"listen"`
	Public       string            `yaml:"public"`
	Peers        []string          `yaml:"peers"`
	Enroller     map[string]string `yaml:"enroller"`
	Attester     map[string]string `yaml:"attester"`
	Training     map[string]string `yaml:"training"`
}

// jobSpec is the text of job.yaml.
type jobSpec struct {
	Name            string    `yaml:"name"`
	Rounds          int       `yaml:"rounds"`
	Seed            int       `yaml:"seed"`
	Features        int       `yaml:"features"`
	Labels          []string  `yaml:"labels"`
	Model           modelSpec `yaml:"model"`
	Train           trainSpec `yaml:"train"`
	MinParticipants int       `yaml:"min_participants"`
	Deadline        int       `yaml:"deadline"`
	Interval        int       `yaml:"interval"`
	Disclosure      string    `yaml:"disclosure"`
}

type modelSpec struct {
	Hidden int `yaml:"hidden"`
}

type trainSpec struct {
	Epochs       int     `yaml:"epochs"`
	Batch        int     `yaml:"batch"`
	LearningRate float64 `yaml:"learning_rate"`
	Momentum     float64 `yaml:"momentum"`
}

// writeYAML writes a file a person could have written.
func writeYAML(path string, v any) error {
	b, err := yaml.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}
