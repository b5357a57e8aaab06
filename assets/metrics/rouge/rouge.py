from common.metrics import module_class

Metric = module_class("rouge")
