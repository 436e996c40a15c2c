"""Kafka's C client in batches, every value decoded by fastavro, nothing done with it: what a Python worker could carry at most."""

from confluent_kafka import Consumer, TopicPartition

from benchmarks.peers.task import Task, decode, told

#: Messages of one call.
BATCH = 10_000
#: How long the client may take to find the topics (seconds).
ANSWER_S = 30.0


def run(task: Task) -> None:
    """Take all events."""
    consumer = Consumer({"bootstrap.servers": task.bootstrap, "group.id": "raw", "enable.auto.commit": False})
    places = [
        TopicPartition(topic, partition, 0)
        for topic in task.topics
        for partition in consumer.list_topics(topic, timeout=ANSWER_S).topics[topic].partitions
    ]
    consumer.assign(places)
    clicks = 0
    done = False
    while not done:
        messages = consumer.consume(BATCH, 0.1)
        if messages:
            task.begin()
        for message in messages:
            value = message.value()
            assert value is not None, message.error()
            clicks += "position" not in decode(value)
        done = bool(messages) and task.saw(len(messages))
    task.tell(clicks=clicks)
    consumer.close()


if __name__ == "__main__":
    run(told())
