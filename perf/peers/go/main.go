// The benchmark program of Go, as a user would write it. Same command line and same form of result as the Rust programs
// (see ../../harness/src/lib.rs).
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const batch = 1000
const bufferBytes = 1024

type measured struct {
	Operations  uint64 `json:"operations"`
	WallNs      uint64 `json:"wall_ns"`
	CPUNs       uint64 `json:"cpu_ns"`
	MemoryBytes uint64 `json:"memory_bytes"`
	PeakBytes   uint64 `json:"peak_bytes"`
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func cpuTime() time.Duration {
	var usage syscall.Rusage
	fail(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// A number of kB from /proc/self/status, in bytes.
func statusBytes(key string) uint64 {
	status, err := os.ReadFile("/proc/self/status")
	fail(err)
	for _, line := range strings.Split(string(status), "\n") {
		if strings.HasPrefix(line, key+":") {
			kibibytes, err := strconv.ParseUint(strings.Fields(line)[1], 10, 64)
			fail(err)
			return kibibytes * 1024
		}
	}
	return 0
}

func measure(operations uint64, f func()) measured {
	memory, cpu, started := statusBytes("VmRSS"), cpuTime(), time.Now()
	f()
	wall, used := time.Since(started), cpuTime()-cpu
	after := statusBytes("VmRSS")
	if after < memory {
		after = memory
	}
	return measured{operations, uint64(wall), uint64(used), after - memory, statusBytes("VmHWM")}
}

func yields(count uint64) measured {
	return measure(count, func() {
		var both sync.WaitGroup
		both.Add(2)
		for i := 0; i < 2; i++ {
			go func() {
				for n := uint64(0); n < count/2; n++ {
					runtime.Gosched()
				}
				both.Done()
			}()
		}
		both.Wait()
	})
}

func spawnJoin(count uint64) measured {
	return measure(count, func() {
		results := make([]uint64, batch)
		for n := uint64(0); n < count/batch; n++ {
			var all sync.WaitGroup
			all.Add(batch)
			for i := 0; i < batch; i++ {
				go func(i int) {
					results[i] = uint64(i)
					all.Done()
				}(i)
			}
			all.Wait()
		}
	})
}

func pingPong(count uint64) measured {
	to, back := make(chan uint64), make(chan uint64)
	go func() {
		for number := range to {
			back <- number
		}
	}()
	return measure(count, func() {
		for n := uint64(0); n < count; n++ {
			to <- n
			if <-back != n {
				panic("a wrong number")
			}
		}
		close(to)
	})
}

func mutex(count uint64) measured {
	var lock sync.Mutex
	var value uint64
	return measure(count, func() {
		for n := uint64(0); n < count; n++ {
			lock.Lock()
			value++
			lock.Unlock()
		}
	})
}

func handOver(count uint64) measured {
	var lock sync.Mutex
	changed := sync.NewCond(&lock)
	taken := uint64(0)
	play := func(mine uint64) {
		lock.Lock()
		defer lock.Unlock()
		for {
			for taken < count && taken%2 != mine {
				changed.Wait()
			}
			if taken >= count {
				changed.Signal()
				return
			}
			taken++
			changed.Signal()
		}
	}
	go play(1)
	return measure(count, func() { play(0) })
}

func parked(count uint64) measured {
	return measure(count, func() {
		started, never := make(chan struct{}), make(chan struct{})
		for n := uint64(0); n < count; n++ {
			go func() {
				started <- struct{}{}
				<-never
			}()
		}
		for n := uint64(0); n < count; n++ {
			<-started
		}
	})
}

func sleep(count uint64) measured {
	return measure(count, func() {
		var all sync.WaitGroup
		all.Add(int(count))
		for n := uint64(0); n < count; n++ {
			go func() {
				time.Sleep(time.Second)
				all.Done()
			}()
		}
		all.Wait()
	})
}

func serve(connection net.Conn) {
	defer connection.Close()
	buffer := make([]byte, bufferBytes)
	for {
		bytes, err := connection.Read(buffer)
		if err != nil {
			return
		}
		if _, err = connection.Write(buffer[:bytes]); err != nil {
			return
		}
	}
}

// Go raises its own limit of descriptors only from 1.19 on, and sets TCP_NODELAY by itself.
func echo() {
	var limit syscall.Rlimit
	fail(syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	limit.Cur = limit.Max
	fail(syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	fail(err)
	fmt.Println(listener.Addr())
	for {
		connection, err := listener.Accept()
		fail(err)
		go serve(connection)
	}
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: bench_go TEST [--variant go] [--count N] [--workers N]")
		os.Exit(2)
	}
	flags := flag.NewFlagSet("bench_go", flag.ExitOnError)
	flags.String("variant", "go", "there is one")
	count := flags.Uint64("count", 100000, "how many operations or tasks")
	workers := flags.Int("workers", 1, "GOMAXPROCS")
	fail(flags.Parse(os.Args[2:]))
	runtime.GOMAXPROCS(*workers)
	tests := map[string]func(uint64) measured{
		"yield": yields, "yield-now": yields, "spawn-join": spawnJoin, "ping-pong": pingPong, "mutex": mutex,
		"hand-over": handOver, "parked": parked, "sleep": sleep,
	}
	if os.Args[1] == "echo" {
		echo()
		return
	}
	test, known := tests[os.Args[1]]
	if !known {
		os.Exit(3)
	}
	line, err := json.Marshal(test(*count))
	fail(err)
	fmt.Println(string(line))
}
