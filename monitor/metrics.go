package monitor

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are what Prometheus is told. Names begin with meshnode_monitor_.
type metrics struct {
	registry *prometheus.Registry

	checks     prometheus.Counter
	failures   *prometheus.CounterVec // by copy
	lastCheck  prometheus.Gauge
	size       prometheus.Gauge
	shown      *prometheus.GaugeVec // by copy
	lag        prometheus.Gauge
	fresh      prometheus.Gauge
	alerts     *prometheus.CounterVec // by code and severity
	open       *prometheus.GaugeVec   // by code and severity
	waiting    prometheus.Gauge
	hookErrors prometheus.Counter
}

func newMetrics() *metrics {
	const ns = "meshnode_monitor"
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: ns, Name: name, Help: help})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Name: name, Help: help})
	}
	m := &metrics{
		registry: prometheus.NewRegistry(),
		checks:   counter("checks_total", "Rounds in which all copies were asked."),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Name: "check_failures_total",
			Help: "Rounds in which a copy could not be read or did not hold."}, []string{"log"}),
		lastCheck: gauge("last_check_timestamp_seconds", "When the last round ended."),
		size:      gauge("verified_size", "Entries that were audited and told."),
		shown: prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: ns, Name: "log_size",
			Help: "Entries by the newest checkpoint that a copy has shown."}, []string{"log"}),
		lag:   gauge("lag_entries", "Entries that some copy shows and that are not audited yet."),
		fresh: gauge("verified_timestamp_seconds", "When a quorum cosigned the audited size last; age is time() minus this."),
		alerts: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Name: "alerts_total",
			Help: "Alerts since the monitor was started."}, []string{"code", "severity"}),
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: ns, Name: "open_conditions",
			Help: "Conditions that were told and last."}, []string{"code", "severity"}),
		waiting:    gauge("hook_queue_bytes", "Bytes of alerts that the hook has not taken."),
		hookErrors: counter("hook_failures_total", "Runs of the hook that did not exit 0."),
	}
	m.registry.MustRegister(m.checks, m.failures, m.lastCheck, m.size, m.shown, m.lag, m.fresh, m.alerts, m.open, m.waiting, m.hookErrors)
	return m
}

// serveMetrics answers GET /metrics at ln until ctx ends.
func serveMetrics(ctx context.Context, ln net.Listener, m *metrics) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
