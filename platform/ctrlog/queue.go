// SPDX-License-Identifier: Apache-2.0

package ctrlog

import (
	"log/slog"
	"sync"
	"time"
)

// queue is lines that wait for the log. When they take too much memory, the oldest are dropped.
type queue struct {
	max  int64
	file *logFile
	log  *slog.Logger

	mu      sync.Mutex
	more    sync.Cond
	entries []entry
	size    int64
	dropped int64
	closed  bool
	done    chan struct{}
}

type entry struct {
	stream int
	at     time.Time
	text   []byte
}

// size is about what an entry takes in memory.
func (e *entry) size() int64 { return int64(len(e.text)) + 64 }

func newQueue(max int64, file *logFile, log *slog.Logger) *queue {
	q := &queue{max: max, file: file, log: log, done: make(chan struct{})}
	q.more.L = &q.mu
	go q.run()
	return q
}

func (q *queue) add(e entry) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.entries = append(q.entries, e)
	q.size += e.size()
	for q.size > q.max && len(q.entries) > 1 {
		q.size -= q.entries[0].size()
		q.entries[0] = entry{}
		q.entries = q.entries[1:]
		q.dropped++
	}
	q.more.Signal()
}

// take waits for lines and takes some. It returns none once the queue is closed and empty.
func (q *queue) take() (batch []entry) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.entries) == 0 && !q.closed {
		q.more.Wait()
	}
	if q.dropped > 0 {
		q.log.Warn("output of a container is not logged: it came too fast", "file", q.file.path, "lost_lines", q.dropped)
		q.dropped = 0
	}
	n := 0
	for size := int64(0); n < len(q.entries) && size < chunkSize; n++ {
		size += q.entries[n].size()
		q.size -= q.entries[n].size()
	}
	batch, q.entries = q.entries[:n], q.entries[n:]
	return batch
}

func (q *queue) run() {
	defer close(q.done)
	var lines []byte
	for {
		batch := q.take()
		if len(batch) == 0 {
			return
		}
		for len(batch) > 0 {
			q.file.mu.Lock()
			room := q.file.room(q.log)
			lines = lines[:0]
			for len(batch) > 0 && int64(len(lines)) < room {
				lines = appendLine(lines, batch[0].stream, batch[0].text, batch[0].at)
				batch = batch[1:]
			}
			q.file.write(lines, q.log)
			q.file.mu.Unlock()
		}
	}
}

// close returns when all is written.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.more.Signal()
	q.mu.Unlock()
	<-q.done
}
