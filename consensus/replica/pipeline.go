package replica

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// pipeline implements raft.AppendPipeline: appends sent before the answers to earlier ones
// have come. Raft gives a pipeline up at the first error; an append that fails is
// therefore never handed to Consumer, which would count it as a sign of life.
type pipeline struct {
	t      *transport
	out    *outgoing
	window chan struct{} // one token per unanswered append
	ready  chan raft.AppendFuture

	closed chan struct{}
	once   sync.Once
}

// appendFuture implements raft.AppendFuture. It is handed out once it is complete.
type appendFuture struct {
	start time.Time
	args  *raft.AppendEntriesRequest
	resp  *raft.AppendEntriesResponse
}

func (f *appendFuture) Error() error                          { return nil }
func (f *appendFuture) Start() time.Time                      { return f.start }
func (f *appendFuture) Request() *raft.AppendEntriesRequest   { return f.args }
func (f *appendFuture) Response() *raft.AppendEntriesResponse { return f.resp }

// AppendEntriesPipeline implements raft.Transport.
func (t *transport) AppendEntriesPipeline(id raft.ServerID, _ raft.ServerAddress) (raft.AppendPipeline, error) {
	o, err := t.stream(id, t.heartbeat)
	if err != nil {
		return nil, err
	}
	return &pipeline{
		t: t, out: o,
		window: make(chan struct{}, pipelineWindow),
		ready:  make(chan raft.AppendFuture, pipelineBacklog),
		closed: make(chan struct{}),
	}, nil
}

// AppendEntries implements raft.AppendPipeline. It waits while the window is full, and
// cuts args to what one frame holds.
func (p *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	timeout, err := p.t.fit(args)
	if err != nil {
		return nil, err
	}
	f := &appendFuture{start: time.Now(), args: args, resp: resp}
	select {
	case p.window <- struct{}{}:
	case <-p.closed:
		return nil, raft.ErrPipelineShutdown
	case <-p.out.done:
		return nil, p.out.err
	}
	select {
	case <-p.closed:
		return nil, raft.ErrPipelineShutdown
	default:
	}
	return f, p.out.send(args, timeout, func(c *call) { p.finished(c, f) })
}

func (p *pipeline) finished(c *call, f *appendFuture) {
	<-p.window
	if c.err != nil {
		p.Close()
		return
	}
	*f.resp = *c.reply.(*raft.AppendEntriesResponse)
	select {
	case p.ready <- f:
	default:
		p.Close() // raft does not read: let it begin anew
	}
}

// Consumer implements raft.AppendPipeline.
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.ready }

// Close implements raft.AppendPipeline. Answers that still come are not looked at.
func (p *pipeline) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}
