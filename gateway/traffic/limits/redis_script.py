"""What does Redis do with a batch of requests and ends? The script that counts there, in one step for all others.

It has `table`'s arithmetic. An account is a hash: two levels, each with its time, a day with what was used on it, and
for each holder (a gateway process) what it holds. Holders say all that they hold, not what has changed: so a batch that
is sent twice, because its answer didn't come, holds nothing twice. A holder that has not been heard of for its ``ttl``
is dead, and what it holds is free.

Numbers are doubles: whole ones are exact below 2^53, and `limit.parse_rate` sees to it that they stay there.

KEYS: the hash of holders, then the accounts. ARGV, as MessagePack: holder, ttl (µs), accounts, asks; an account is
[requests, its seconds, tokens, its seconds, concurrent, tokens a day (each 0: no limit), tokens used, held, running],
an ask [tokens, indices of accounts]. Returns, as MessagePack: the time (µs), how many holders live, and for each ask
[1 if it was granted, what each of its accounts had used up before, to the first that refused].
"""

from typing import Final

SCRIPT: Final = """
local MICRO, DAY, KEPT = 1000000, 86400 * 1000000, 2 * 86400 * 1000
local time = redis.call('TIME')
local now = time[1] * MICRO + time[2]
local said = cmsgpack.unpack(ARGV[1])
local holder, ttl, accounts, asks = said[1], said[2], said[3], said[4]
local function whole(number) return string.format('%.0f', number) end

local living, count = {}, 0
redis.call('HSET', KEYS[1], holder, whole(now + ttl))
redis.call('PEXPIRE', KEYS[1], KEPT)
local holders = redis.call('HGETALL', KEYS[1])
for i = 1, #holders, 2 do
  if tonumber(holders[i + 1]) > now then
    living[holders[i]] = true
    count = count + 1
  else
    redis.call('HDEL', KEYS[1], holders[i])
  end
end

local function drained(level, at, amount, seconds)
  if amount == 0 then return 0 end
  if now <= at then return level end
  return math.max(0, level - math.floor((now - at) * amount / seconds))
end

local states = {}
for i, account in ipairs(accounts) do
  local key, found = KEYS[i + 1], {}
  local state = {held = 0, running = 0, own_held = account[8], own_running = account[9]}
  local fields = redis.call('HGETALL', key)
  for f = 1, #fields, 2 do
    local name = fields[f]
    if name:sub(1, 2) ~= 'h:' then
      found[name] = tonumber(fields[f + 1])
    elseif not living[name:sub(3)] then
      redis.call('HDEL', key, name)
    elseif name:sub(3) ~= holder then
      local held, running = fields[f + 1]:match('(%d+) (%d+)')
      state.held = state.held + held
      state.running = state.running + running
    end
  end
  state.held = state.held + state.own_held
  state.running = state.running + state.own_running
  state.requests = drained(found.r or 0, found.ra or 0, account[1], account[2])
  state.tokens = drained(found.t or 0, found.ta or 0, account[3], account[4]) + account[7] * MICRO
  local today = math.floor(now / DAY)
  state.day = (found.d == today and found.u or 0) + account[7]
  states[i] = state
end

local function refused(account, state, tokens)
  return account[5] > 0 and state.running >= account[5]
    or account[1] > 0 and state.requests + MICRO > account[1] * MICRO
    or account[3] > 0 and state.tokens + (state.held + tokens) * MICRO > account[3] * MICRO
    or account[6] > 0 and state.day + state.held + tokens > account[6]
end

local answers = {}
for i, ask in ipairs(asks) do
  local tokens, granted, uses = ask[1], 1, {}
  for _, index in ipairs(ask[2]) do
    local state = states[index]
    uses[#uses + 1] = {state.requests, state.tokens, state.day, state.held, state.running}
    if refused(accounts[index], state, tokens) then
      granted = 0
      break
    end
  end
  if granted == 1 then
    for _, index in ipairs(ask[2]) do
      local state = states[index]
      state.requests = state.requests + MICRO
      state.held, state.own_held = state.held + tokens, state.own_held + tokens
      state.running, state.own_running = state.running + 1, state.own_running + 1
    end
  end
  answers[i] = {granted, uses}
end

for i, state in ipairs(states) do
  local key = KEYS[i + 1]
  redis.call('HSET', key, 'r', whole(state.requests), 'ra', whole(now), 't', whole(state.tokens), 'ta', whole(now),
    'd', whole(math.floor(now / DAY)), 'u', whole(state.day))
  if state.own_running > 0 or state.own_held > 0 then
    redis.call('HSET', key, 'h:' .. holder, whole(state.own_held) .. ' ' .. whole(state.own_running))
  else
    redis.call('HDEL', key, 'h:' .. holder)
  end
  redis.call('PEXPIRE', key, KEPT)
end
return cmsgpack.pack({now, count, answers})
"""
